"""Variation of a rate between training seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_rl.evaluation.stats.intervals import (
    Interval,
    bootstrap_interval,
    hull,
    proportion_interval,
    student_quantile,
)
from astra_rl.evaluation.stats.percent import format_percent
from astra_rl.evaluation.stats.rates import Rate


def mean_interval(values: Sequence[float], limits: tuple[float, float | None]) -> Interval | None:
    """Return the 95% interval of the mean over training seeds; None with fewer than three seeds.

    The smallest interval that contains two: the Student t interval of the values, cut at the
    limits, and the bootstrap over seeds with half a seed added at either limit
    (`bootstrap_interval`), which allows for collapsed seeds that a few seeds do not show. Without a
    highest possible value it is the Student t interval.

    Args:
        values: One value per seed.
        limits: Lowest and highest possible value; None is no limit.
    """
    if len(values) < 3:
        return None
    mean = math.fsum(values) / len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = student_quantile(0.95, len(values) - 1) * error
    low, high = limits
    if high is None:
        return Interval(max(low, mean - half), mean + half)
    between = Interval(max(low, mean - half), min(high, mean + half))
    return hull(between, bootstrap_interval([(value, 1.0) for value in values], (low, high)))


@dataclass(frozen=True)
class SeedSpread:
    """Variation of a success rate between training seeds.

    The interval of a rate covers other prompts and samples for one trained attacker; this covers
    other training runs. Report both for a method.

    Attributes:
        rates: Success rate by training seed.
    """

    rates: Mapping[int, Rate]

    @property
    def estimates(self) -> dict[int, float]:
        """Estimated rate by training seed."""
        return {seed: rate.estimate for seed, rate in self.rates.items()}

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        values = list(self.estimates.values())
        return math.fsum(values) / len(values) if values else math.nan

    @property
    def range(self) -> Interval | None:
        """Lowest and highest rate; None with fewer than two seeds."""
        values = list(self.estimates.values())
        return Interval(min(values), max(values)) if len(values) > 1 else None

    @property
    def interval(self) -> Interval | None:
        """95% interval of the mean over training seeds; None with fewer than three seeds.

        The smallest interval that contains three: the Student t interval of the rates; the
        bootstrap over seeds with half a seed added at 0% and at 100% (`bootstrap_interval`), which
        allows for collapsed seeds that a few seeds do not show; and the interval of all attempts
        together, which is the error within seeds. It is never a point.
        """
        known = [rate for rate in self.rates.values() if rate.trials]
        values = [rate.estimate for rate in known]
        between = mean_interval(values, (0.0, 1.0))
        if between is None:
            return None
        trials = sum(rate.trials for rate in known)
        within = proportion_interval(math.fsum(values) / len(values) * trials, trials)
        return hull(between, within)

    @property
    def text(self) -> str:
        """Mean, range and interval as a sentence."""
        mean, seeds = format_percent(self.mean), len(self.estimates)
        if self.range is None:
            return f"{seeds} training seed: rate {mean}; variation between training runs unknown"
        said = (
            f"{seeds} training seeds: mean {mean}, from {format_percent(self.range.low)} to "
            f"{format_percent(self.range.high)}"
        )
        if self.interval is None:
            return f"{said}; two seeds give no interval"
        low, high = map(format_percent, self.interval)
        return f"{said}; 95% interval of the mean over seeds {low} to {high}"

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values; None where there are too few seeds."""
        return {
            "seeds": len(self.estimates),
            "estimates": {str(seed): value for seed, value in self.estimates.items()},
            "mean": self.mean,
            "range": None if self.range is None else list(self.range),
            "interval": None if self.interval is None else list(self.interval),
            "text": self.text,
        }
