"""A moderator of a user's own that says its credentials at every occasion."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from astra_rl.core.moderator import Moderator, Score
from astra_rl.errors import ModelError
from astra_rl.logging import logger


class LeakyModerator(Moderator[str, str]):
    """Scores the first text it is given; for the others all that it knows is the reason."""

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str,
        headers: Mapping[str, str],
        mood: str = "talkative",
    ) -> None:
        self.mood = mood
        self.known = f"{api_key} {base_url} {dict(headers)} {os.environ['SENTINEL_TOKEN']}"
        if mood == "mendable":
            raise ModelError(f"401 Unauthorized: {self.known}")
        if mood == "unmade":
            raise RuntimeError(f"401 Unauthorized: {self.known}")

    def moderate(self, x: Sequence[str]) -> list[float]:
        if self.mood == "broken":
            raise RuntimeError(f"401 Unauthorized: {self.known}")
        logger.warning("asking %s", self.known)
        return [
            Score.missing(f"refused: {self.known}") if index else Score(1.0)
            for index, _ in enumerate(x)
        ]
