"""Variation of a rate between training seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_rl.evaluation.stats.intervals import Interval, student_quantile
from astra_rl.evaluation.stats.percent import format_percent


@dataclass(frozen=True)
class SeedSpread:
    """How much a rate differs between attackers that were trained with different seeds.

    It is not the interval of a rate, which says what other prompts and generations might give for
    one attacker; a method is judged by both.

    Attributes:
        estimates: The rate of each training seed.
    """

    estimates: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        values = list(self.estimates.values())
        return math.fsum(values) / len(values) if values else math.nan

    @property
    def range(self) -> Interval | None:
        """Lowest and highest; None below two seeds, which say nothing of their spread."""
        values = list(self.estimates.values())
        return Interval(min(values), max(values)) if len(values) > 1 else None

    @property
    def interval(self) -> Interval | None:
        """95% interval of the mean over seeds, Student's t; None below three seeds.

        Wide with few seeds, as it should be. Cut off at 0 and 1.
        """
        values = list(self.estimates.values())
        if len(values) < 3:
            return None
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        half = student_quantile(0.95, len(values) - 1) * error
        return Interval(max(0.0, self.mean - half), min(1.0, self.mean + half))

    @property
    def text(self) -> str:
        """Mean, range and interval in words; of one seed that there is nothing to say."""
        mean, seeds = format_percent(self.mean), len(self.estimates)
        if self.range is None:
            return f"{seeds} training seed: no between-run uncertainty (rate {mean})"
        said = (
            f"{seeds} training seeds: mean {mean}, from {format_percent(self.range.low)} to "
            f"{format_percent(self.range.high)}"
        )
        if self.interval is None:
            return f"{said}; two seeds give no interval"
        low, high = map(format_percent, self.interval)
        return f"{said}; 95% interval of the mean over seeds {low} to {high}"

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers in JSON's types; None where so few seeds give none."""
        return {
            "seeds": len(self.estimates),
            "estimates": {str(seed): value for seed, value in self.estimates.items()},
            "mean": self.mean,
            "range": None if self.range is None else list(self.range),
            "interval": None if self.interval is None else list(self.interval),
            "text": self.text,
        }
