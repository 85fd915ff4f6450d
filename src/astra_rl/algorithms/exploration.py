"""Exploration: the untrained attacker, or another temperature, samples some experiences."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from random import Random
from typing import Any

from astra_rl.core.collector import Collected, Collector
from astra_rl.core.environment import Environment
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed
from astra_rl.errors import ConfigurationError


class Exploration(Collector):
    """Samples some experiences from another distribution, for off-policy algorithms.

    An experience is played by the untrained attacker with probability `untrained_share`. Any other
    is sampled at a random temperature with probability `tempered_share`.

    Args:
        tempered_share: Probability of another temperature, in [0, 1].
        lowest: Lower bound of the temperature, positive; it is drawn uniformly.
        highest: Upper bound of the temperature.
        untrained_share: Share of the experiences that the untrained attacker plays, in [0, 1].

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self, tempered_share: float, lowest: float, highest: float, *, untrained_share: float = 0.0
    ) -> None:
        for name, share in (
            ("tempered_share", tempered_share),
            ("untrained_share", untrained_share),
        ):
            if not 0 <= share <= 1:
                raise ConfigurationError(f"{name}={share}; it must be in [0, 1].")
        if not 0 < lowest <= highest < math.inf:
            raise ConfigurationError(
                f"temperatures={[lowest, highest]}; give the least and the largest, both positive."
            )
        self.tempered_share, self.untrained_share = tempered_share, untrained_share
        self.lowest, self.highest = lowest, highest

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise unless the options of an algorithm have temperatures in range, if any."""
        if "temperatures" in options:
            cls(0.0, *options["temperatures"])

    def check_problem(self, problem: Problem[Any, Any]) -> None:
        """Raise unless the problem can sample from each distribution that has a share.

        Raises:
            ConfigurationError: It cannot.
        """
        if self.untrained_share:
            with problem.attacking_untrained():
                pass
        if self.tempered_share:
            with problem.attacking_at(self.lowest):
                pass

    def collect(
        self, environment: Environment[Any, Any], seed: int | None, count: int
    ) -> Collected:
        """See `Collector.collect`."""
        with self._distribution(environment, seed):
            return super().collect(environment, seed, count)

    def _distribution(
        self, environment: Environment[Any, Any], seed: int | None
    ) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the experience of this seed is sampled."""

        def draws(purpose: str) -> Random:
            return Random(None if seed is None else derive_seed(seed, purpose))

        if draws("untrained").random() < self.untrained_share:
            return environment.problem.attacking_untrained()
        random = draws("temperature")
        if random.random() < self.tempered_share:
            return environment.problem.attacking_at(random.uniform(self.lowest, self.highest))
        return contextlib.nullcontext()
