"""Temperature exploration: sample some experiences at another temperature."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from astra_rl.core.collector import Collected, Collector
from astra_rl.core.environment import Environment
from astra_rl.core.seeding import derive_seed
from astra_rl.errors import ConfigurationError


class TemperatureExploration(Collector):
    """Samples some experiences at a random attacker temperature, for off-policy algorithms.

    Args:
        share: Share of these experiences, in [0, 1].
        lowest: Lower bound of the temperature, positive; it is drawn uniformly.
        highest: Upper bound of the temperature.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(self, share: float, lowest: float, highest: float) -> None:
        if not 0 <= share <= 1:
            raise ConfigurationError(f"tempered_share={share}; it must be in [0, 1].")
        if not 0 < lowest <= highest < math.inf:
            raise ConfigurationError(
                f"temperatures={[lowest, highest]}; give the least and the largest, both positive."
            )
        self.share, self.lowest, self.highest = share, lowest, highest

    def collect(
        self, environment: Environment[Any, Any], seed: int | None, count: int
    ) -> Collected:
        """See `Collector.collect`."""
        random = Random(None if seed is None else derive_seed(seed, "temperature"))
        if random.random() >= self.share:
            return super().collect(environment, seed, count)
        with environment.problem.attacking_at(random.uniform(self.lowest, self.highest)):
            return super().collect(environment, seed, count)
