"""Which episodes make an experience."""

from __future__ import annotations

from typing import Any, NamedTuple

from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.seeding import episode_seeds


class Collected(NamedTuple):
    """The episodes of an experience.

    Attributes:
        played: All of them: what rewards and successes are counted over.
        kept: Those that are learned from.
    """

    played: list[Graph[Any, Any]]
    kept: list[Graph[Any, Any]]


class Collector:
    """Plays as many episodes as asked for and keeps them all.

    An algorithm that wants others gives its `Algorithm.collector` another one.
    """

    def collect(
        self, environment: Environment[Any, Any], seed: int | None, count: int
    ) -> Collected:
        """Play the episodes of one experience; the same seed gives the same ones.

        Args:
            environment: What plays them.
            seed: Of the experience; None is another one each time.
            count: How many episodes are to be learned from.
        """
        graphs = environment.rollouts(episode_seeds(seed, count))
        return Collected(graphs, graphs)
