"""Dynamic sampling: replace episodes without a learning signal by newly sampled ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from astra_rl.core.collector import Collected, Collector
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.seeding import derive_seed, episode_seeds
from astra_rl.errors import ConfigurationError


class DynamicSampling(Collector):
    """Samples until enough episodes have a learning signal.

    The dynamic sampling of DAPO (Yu et al. 2025, arXiv 2503.14476, sec. 3.2).

    Args:
        informative: Returns those of the given episodes that have a learning signal.
        max_rounds: Maximum number of resampling rounds; 0 only filters.

    Raises:
        ConfigurationError: `max_rounds` is negative.
    """

    def __init__(
        self,
        informative: Callable[[Sequence[Graph[Any, Any]]], list[Graph[Any, Any]]],
        max_rounds: int = 3,
    ) -> None:
        if max_rounds < 0:
            raise ConfigurationError(f"refill_rounds={max_rounds}; it must be 0 or more.")
        self.informative, self.max_rounds = informative, max_rounds

    def collect(
        self, environment: Environment[Any, Any], seed: int | None, count: int
    ) -> Collected:
        """See `Collector.collect`; after the last round there may be fewer than `count`."""
        played: list[Graph[Any, Any]] = []
        kept: list[Graph[Any, Any]] = []
        for turn in range(1 + self.max_rounds):
            if len(kept) >= count:
                break
            fresh = seed if seed is None or turn == 0 else derive_seed(seed, "refill", turn)
            played += environment.rollouts(episode_seeds(fresh, count - len(kept)))
            kept = self.select(played)
        return Collected(played, kept)

    def select(self, played: list[Graph[Any, Any]]) -> list[Graph[Any, Any]]:
        """Return the episodes that have a learning signal."""
        return self.informative(played)
