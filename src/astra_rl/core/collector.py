"""Collection of the episodes of an experience."""

from __future__ import annotations

from typing import Any, NamedTuple

from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.seeding import episode_seeds


class Collected(NamedTuple):
    """The episodes of an experience.

    Attributes:
        played: All episodes, over which rewards and successes are counted.
        kept: The episodes that are trained on.
    """

    played: list[Graph[Any, Any]]
    kept: list[Graph[Any, Any]]


class Collector:
    """Plays the requested number of episodes and keeps all of them.

    An algorithm selects episodes in another way by setting `Algorithm.collector`.
    """

    def collect(
        self, environment: Environment[Any, Any], seed: int | None, count: int
    ) -> Collected:
        """Play the episodes of one experience; the same seed gives the same episodes.

        Args:
            environment: The environment.
            seed: Seed of the experience; None draws a new one.
            count: Number of episodes to train on.
        """
        graphs = environment.rollouts(episode_seeds(seed, count))
        return Collected(graphs, self.select(graphs))

    def select(self, played: list[Graph[Any, Any]]) -> list[Graph[Any, Any]]:
        """Return those of the episodes played for an experience that are trained on: all."""
        return played
