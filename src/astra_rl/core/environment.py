"""Interface to environments, which play episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic

from astra_rl.core.common import ActionT, StateT
from astra_rl.core.graph import Graph, Node
from astra_rl.core.problem import Problem

__all__ = ["Environment", "Graph", "Node"]


class Environment(ABC, Generic[StateT, ActionT]):
    """Plays episodes of a problem.

    Args:
        problem: The models and the reward.

    Attributes:
        queries_per_turn: Target responses per turn of an evaluation episode; more than one if the
            attack is chosen among several by the responses to them.
        tree_depth: Most turns of an episode.
        samples_exactly: Whether all attacks of training episodes are samples of the attacker, which
            on-policy algorithms need.
    """

    queries_per_turn: int = 1
    tree_depth: int = 1
    samples_exactly: ClassVar[bool] = True

    def __init__(self, problem: Problem[StateT, ActionT]) -> None:
        self.problem = problem

    @abstractmethod
    def rollout(self, seed: int | None = None) -> Graph[StateT, ActionT]:
        """Play one episode. The same seed, zero included, gives the same graph."""

    def rollouts(self, seeds: Sequence[int | None]) -> list[Graph[StateT, ActionT]]:
        """Play one episode per seed.

        Override it to batch the model calls of all episodes.
        """
        return [self.rollout(seed) for seed in seeds]

    def choose_prompt(self, seed: int) -> StateT:
        """Return the context that an episode of this seed opens with.

        Raises:
            NotImplementedError: The environment does not open with prompts.
        """
        raise NotImplementedError(f"{type(self).__name__} has no choose_prompt.")

    def observe(self, graphs: Sequence[Graph[StateT, ActionT]]) -> None:
        """Update the state of the environment from a training experience.

        The harness calls it once after each experience, with all episodes that were played.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later episodes depend on, as JSON values, for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def eval_rollout(self, seed: int | StateT | None = None) -> Graph[StateT, ActionT]:
        """Play one evaluation episode, from a seed or from an opening context.

        Raises:
            NotImplementedError: The environment does not support opening contexts.
        """
        if seed is None or isinstance(seed, int):
            return self.rollout(seed)
        raise NotImplementedError(
            f"{type(self).__name__} cannot start an episode from a context; "
            "override eval_rollout to support it."
        )

    def eval_rollouts(
        self, seeds: Sequence[int | StateT | None], trials: Sequence[int] | None = None
    ) -> list[Graph[StateT, ActionT]]:
        """Play one evaluation episode per entry; override it to batch them.

        Args:
            seeds: Seed or opening context of each episode.
            trials: Number of earlier episodes with the same opening, in this call or before, so
                that a repeated context is a new trial; None counts within this call.
        """
        return [self.eval_rollout(seed) for seed in seeds]
