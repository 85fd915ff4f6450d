"""A moderator: how bad a text is, from 0 to 1."""

from collections.abc import Sequence

from astra_rl import Moderator


class ShoutingModerator(Moderator[str, str]):
    """The share of capital letters among the letters.

    Args:
        at_least: Number of letters below which a text scores 0.
    """

    def __init__(self, at_least: int = 4) -> None:
        self.at_least = at_least

    def moderate(self, x: Sequence[str]) -> Sequence[float]:
        """Return one score from 0 to 1 per text."""
        return [self._score(text) for text in x]

    def _score(self, text: str) -> float:
        letters = [letter for letter in text if letter.isalpha()]
        if len(letters) < self.at_least:
            return 0.0
        return sum(map(str.isupper, letters)) / len(letters)
