"""Playing on until enough episodes teach something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from astra_rl.core.collector import Collected, Collector
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.seeding import derive_seed, episode_seeds
from astra_rl.errors import ConfigurationError


class DynamicSampling(Collector):
    """Keeps the episodes that teach something and plays others in place of the rest.

    This is the dynamic sampling of DAPO (Yu et al. 2025, arXiv 2503.14476, sec. 3.2).

    Args:
        teaching: Returns those of some episodes that teach something.
        max_rounds: So many times others are played at most; 0 only leaves out.

    Raises:
        ConfigurationError: `max_rounds` is negative.
    """

    def __init__(
        self,
        teaching: Callable[[Sequence[Graph[Any, Any]]], list[Graph[Any, Any]]],
        max_rounds: int = 3,
    ) -> None:
        if max_rounds < 0:
            raise ConfigurationError(f"refill_rounds={max_rounds}; it must be 0 or more.")
        self.teaching, self.max_rounds = teaching, max_rounds

    def collect(
        self, environment: Environment[Any, Any], seed: int | None, count: int
    ) -> Collected:
        """See `Collector.collect`; the kept episodes may be fewer when the rounds are over."""
        played: list[Graph[Any, Any]] = []
        kept: list[Graph[Any, Any]] = []
        for turn in range(1 + self.max_rounds):
            if len(kept) >= count:
                break
            fresh = seed if seed is None or turn == 0 else derive_seed(seed, "refill", turn)
            played += environment.rollouts(episode_seeds(fresh, count - len(kept)))
            kept = self.teaching(played)
        return Collected(played, kept)
