"""Agreement of judges: Krippendorff's alpha."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.resampling import Estimate, Scores, percentile_estimate


def krippendorff_alpha(
    ratings: Sequence[Sequence[float]], level: Literal["nominal", "interval"] = "nominal"
) -> float:
    """Return Krippendorff's alpha: 1 is perfect agreement, 0 is chance, below 0 is disagreement.

    ``1 - D_o / D_e`` with the observed disagreement within units, and that expected under random
    assignment of the ratings (Krippendorff 2011, *Computing Krippendorff's Alpha-Reliability*).

    Args:
        ratings: One row per unit, one column per rater, NaN where a rater did not rate. Units with
            fewer than two ratings are ignored.
        level: ``"nominal"`` compares for equality, ``"interval"`` squares differences.

    Returns:
        Alpha; NaN if no unit has two ratings, or all ratings are equal.

    Raises:
        ConfigurationError: There is no such level.
    """
    if level not in ("nominal", "interval"):
        raise ConfigurationError(f"level={level!r}; choose 'nominal' or 'interval'.")
    units = _Units.of(ratings, level)
    return units.alpha(np.ones(len(ratings)))


def alpha_estimate(
    ratings: Sequence[Sequence[float]],
    level: Literal["nominal", "interval"] = "nominal",
    *,
    groups: Sequence[int] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return Krippendorff's alpha with a percentile interval over resampled units.

    Args:
        ratings: See `krippendorff_alpha`.
        level: See `krippendorff_alpha`.
        groups: Number of the group of each unit, from 0, such as its prompt: raters may err alike
            on units of one, so whole groups are resampled. None: units are independent.
        resamples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    units = _Units.of(ratings, level)
    group_of = np.arange(len(ratings)) if groups is None else np.asarray(groups, dtype=np.intp)
    count = int(group_of.max()) + 1 if len(group_of) else 0
    drawn = []
    for _ in range(resamples if count else 0):
        times = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
        drawn.append(units.alpha(times[group_of]))
    return percentile_estimate(krippendorff_alpha(ratings, level), drawn)


@dataclass(frozen=True)
class _Units:
    """Sufficient statistics of each unit; alpha of a resample is computed from weighted sums.

    Attributes:
        sums: Shape (U, K): counts of each value (nominal), or number, sum and sum of squares of the
            ratings (interval). They are additive over units.
        sizes: Number of ratings per unit, shape (U,); 0 for units with fewer than two.
        observed: Disagreement within each unit, shape (U,).
        differences: Maps sums (..., K) to the total difference over ordered pairs of ratings (...).
    """

    sums: Scores
    sizes: Scores
    observed: Scores
    differences: Callable[[Scores], Scores]

    @classmethod
    def of(
        cls, ratings: Sequence[Sequence[float]], level: Literal["nominal", "interval"]
    ) -> _Units:
        table = np.asarray(ratings, dtype=np.float64).reshape(
            len(ratings), len(ratings[0]) if len(ratings) else 0
        )
        given = ~np.isnan(table)
        given &= given.sum(axis=1, keepdims=True) > 1
        values = np.unique(table[given])
        differences = _squared_differences if level == "interval" else _nominal_differences
        if level == "interval":
            # Shifted towards zero against cancellation; differences are unaffected.
            moved = np.where(given, table - (values[0] if len(values) else 0.0), 0.0)
            parts = [given.sum(axis=1), moved.sum(axis=1), (moved**2).sum(axis=1)]
        else:
            parts = [((table == value) & given).sum(axis=1) for value in values]
        sums = np.stack(parts, axis=1).astype(np.float64) if parts else np.zeros((len(table), 1))
        sizes = given.sum(axis=1).astype(np.float64)
        return cls(sums, sizes, differences(sums) / np.maximum(sizes - 1, 1), differences)

    def alpha(self, weights: Scores) -> float:
        """Return alpha if unit ``u`` occurs ``weights[u]`` times."""
        total = float(weights @ self.sizes)
        if total < 2:
            return math.nan
        expected = float(self.differences(weights @ self.sums)) / (total - 1)
        return 1 - float(weights @ self.observed) / expected if expected > 0 else math.nan


def _nominal_differences(counts: Scores) -> Scores:
    """Number of ordered pairs that differ: ``n^2 - sum c^2``."""
    return np.asarray(counts.sum(axis=-1) ** 2 - (counts**2).sum(axis=-1))


def _squared_differences(sums: Scores) -> Scores:
    """Sum of squared differences over ordered pairs: ``2 (n sum x^2 - (sum x)^2)``."""
    return np.asarray(2 * (sums[..., 0] * sums[..., 2] - sums[..., 1] ** 2))
