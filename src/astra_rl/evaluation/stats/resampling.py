"""Estimates with bootstrap intervals, of statistics of labelled and scored rows.

`truth` is a bool array of shape (N,), `scores` a float array in [0, 1] of shape (N,) without
missing values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from astra_rl.evaluation.stats.intervals import Interval, hull

Truth = NDArray[np.bool_]
Scores = NDArray[np.float64]
Groups = NDArray[np.int64]
"""Group of each row, shape (N,): rows of one prompt or conversation, whose errors may be alike."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """An estimate with a 95% interval; NaN where there is none.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return {"value": self.value, "low": self.low, "high": self.high}


def widened(interval: Interval, drawn: Estimate) -> Interval:
    """Return the hull of an interval and that of an estimate, if this has one."""
    return interval if math.isnan(drawn.low) else hull(interval, Interval(drawn.low, drawn.high))


def bootstrap(
    truth: Truth,
    scores: Scores,
    statistics: Mapping[str, Callable[[Truth, Scores], float]],
    groups: Groups | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return statistics with percentile intervals over resampled rows.

    An interval is missing if all resamples gave the same value, or if more than a tenth gave none.
    Whole groups of rows are resampled; without groups, rows must be independent.
    """
    draw = row_drawer(len(scores), groups, np.random.default_rng(seed))
    drawn: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(resamples if len(scores) else 0):
        rows = draw()
        for name, statistic in statistics.items():
            drawn[name].append(statistic(truth[rows], scores[rows]))
    return {
        name: percentile_estimate(statistic(truth, scores), drawn[name])
        for name, statistic in statistics.items()
    }


def row_drawer(
    count: int, groups: Groups | None, rng: np.random.Generator
) -> Callable[[], NDArray[np.int64]]:
    """Return a function that draws rows with replacement, whole groups where there are groups."""
    if groups is None:
        return lambda: rng.integers(count, size=count)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return lambda: np.concatenate(
        [members[each] for each in rng.integers(len(members), size=len(members))]
    )


def percentile_estimate(value: float, drawn: Sequence[float]) -> Estimate:
    """Return an estimate with the percentile interval of its bootstrap replicates.

    The interval is NaN if more than a tenth of the replicates are not finite.
    """
    finite = np.asarray([each for each in drawn if math.isfinite(each)])
    if math.isnan(value) or len(finite) < 0.9 * len(drawn) or not len(finite):
        return Estimate(value)
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high)) if low < high else Estimate(value)
