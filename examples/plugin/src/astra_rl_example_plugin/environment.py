"""An environment: the shape of an episode."""

from collections.abc import Sequence
from typing import Any

from astra_rl import ASTEnvironment, Problem


class TwoTurnEnvironment(ASTEnvironment):
    """Conversations of two turns, each turn with `tree_width` attacks.

    Args:
        problem: The models and the reward.
        prompts: Opening contexts.
        tree_width: Attacks sampled from each context.
    """

    def __init__(
        self, problem: Problem[str, str], prompts: Sequence[str], tree_width: int = 2
    ) -> None:
        super().__init__(problem, prompts, tree_width, 2)

    @classmethod
    def turns_by_level(cls, *, straight: bool = False, **options: Any) -> list[int]:
        """Return the turns of an episode at each of the two levels, for estimates of the cost."""
        return super().turns_by_level(straight=straight, **{**options, "tree_depth": 2})
