"""Rude language, judged by a small linear classifier that needs no network."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from astra_rl.core.moderator import Moderator, Score
from astra_rl.errors import require


class ProfanityModerator(Moderator[str, str]):
    """Scores texts with the classifier of the package ``alt-profanity-check``.

    The score is the probability of rude or offensive English under a linear model of the words of
    a text. It needs microseconds per text, no download and no GPU. It knows words, not meanings:
    a calm threat scores low and a quoted insult scores high.

    Raises:
        MissingDependencyError: The extra ``profanity`` is not installed.
    """

    def __init__(self) -> None:
        self._predict_prob = require("profanity_check", extra="profanity").predict_prob

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each text in [0, 1], all in one call of the classifier."""
        if not x:  # the classifier refuses an empty batch
            return []
        return [
            Score.checked(float(score)) for score in self._predict_prob([str(text) for text in x])
        ]

    def identity_weights(self) -> str:
        """Which classifier scores."""
        return f"alt-profanity-check {importlib.metadata.version('alt-profanity-check')}"
