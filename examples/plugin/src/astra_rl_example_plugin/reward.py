"""A reward term: one number per turn."""

from collections.abc import Sequence

from astra_rl import Exchange
from astra_rl.rewards.base import RewardModels, RewardTerm


class Shortness(RewardTerm):
    """One for an empty attack, down to zero at `limit` characters.

    Args:
        limit: Number of characters at which the term is zero.
    """

    name = "shortness"

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return one value from 0 to 1 per turn."""
        return [max(0.0, 1 - len(each.attack) / self.limit) for each in exchanges]
