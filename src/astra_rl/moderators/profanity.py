"""Profanity, scored by a small linear classifier that needs no download."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from astra_rl.core.moderator import Moderator, Score
from astra_rl.errors import require
from astra_rl.infra.registry import named


@named("profanity")
class ProfanityModerator(Moderator[str, str]):
    """Scores texts with the classifier of the package ``alt-profanity-check``.

    The score is the probability of profane or offensive English under a bag-of-words linear model.
    It takes microseconds per text and needs neither a download nor a GPU. It does not understand
    meaning: a calm threat scores low and a quoted insult scores high.

    Raises:
        MissingDependencyError: The extra ``profanity`` is not installed.
    """

    def __init__(self) -> None:
        self._predict_prob = require("profanity_check", extra="profanity").predict_prob

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each text in [0, 1] with one call of the classifier."""
        if not x:  # the classifier refuses an empty batch
            return []
        return [
            Score.checked(float(score)) for score in self._predict_prob([str(text) for text in x])
        ]

    def identity_weights(self) -> str:
        """Return the name and version of the classifier."""
        return f"alt-profanity-check {importlib.metadata.version('alt-profanity-check')}"
