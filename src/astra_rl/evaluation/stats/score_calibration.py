"""How well scores match the share of positive rows: Brier score and calibration error.

See `resampling` for `truth` and `scores`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from astra_rl.evaluation.stats.intervals import bootstrap_interval
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.resampling import (
    CONFIDENCE,
    Estimate,
    Groups,
    Scores,
    Truth,
    row_drawer,
)


@dataclass(frozen=True)
class Bin:
    """A bin of a reliability diagram.

    Attributes:
        mean_score: Mean score of its rows.
        positives: Rate of positive rows.
    """

    mean_score: float
    positives: Rate


def brier_estimate(truth: Truth, scores: Scores, groups: Groups | None = None) -> Estimate:
    """Return the Brier score with the interval of a mean in [0, 1], see `bootstrap_interval`.

    A plain percentile interval covers 82% to 84% with 60 rows: large errors are rare and may be
    missing from the sample.
    """
    which = np.unique(np.arange(len(scores)) if groups is None else groups, return_inverse=True)[1]
    sizes = np.bincount(which)
    if len(sizes) < 2:
        return Estimate(brier(truth, scores))
    errors = np.bincount(which, weights=(scores - truth) ** 2)
    pairs = list(zip(errors.tolist(), sizes.astype(np.float64).tolist(), strict=True))
    interval = bootstrap_interval(pairs, (0.0, 1.0))
    value = brier(truth, scores)
    return Estimate(value, min(value, interval.low), max(value, interval.high))


def brier(truth: Truth, scores: Scores) -> float:
    """Return the mean squared difference of score and truth; a constant score of 0.5 gives 0.25."""
    return float(np.mean((scores - truth) ** 2)) if len(scores) else math.nan


def reliability(truth: Truth, scores: Scores, bins: int = 10) -> list[Bin]:
    """Return the non-empty bins of a reliability diagram; bins have equal width in score."""
    which = np.clip(np.ceil(scores * bins).astype(int) - 1, 0, bins - 1)
    return [
        Bin(
            float(scores[which == index].mean()),
            Rate(int(truth[which == index].sum()), int((which == index).sum())),
        )
        for index in range(bins)
        if (which == index).any()
    ]


def calibration_error(truth: Truth, scores: Scores, bins: int = 10) -> float:
    """Return the expected calibration error (ECE).

    It is the mean over bins of the absolute difference of the mean score and the rate, weighted by
    the size of the bin.
    """
    if not len(scores):
        return math.nan
    found = reliability(truth, scores, bins)
    gaps = (abs(b.mean_score - b.positives.estimate) * b.positives.trials for b in found)
    return math.fsum(gaps) / len(scores)


def calibration_error_estimate(
    truth: Truth,
    scores: Scores,
    groups: Groups | None = None,
    bins: int = 10,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return the calibration error with an interval that allows for its bias.

    The estimate is the L1 norm of the differences per bin, so noise always increases it, and its
    bootstrap interval never contains the 0 of a calibrated judge. The lower end subtracts the 95%
    quantile of the L1 norm of the noise: of resampled rows around the sample, or of labels drawn
    with the scores as their probabilities, whichever is larger. The upper end adds 1.96 standard
    errors; the signed differences, whose sum is at most the norm, have no bias.
    """
    value = calibration_error(truth, scores, bins)
    count = len(scores)
    if not count:
        return Estimate(value)
    which = np.clip(np.ceil(scores * bins).astype(int) - 1, 0, bins - 1)
    rng = np.random.default_rng(seed)
    observed = _gaps(scores - truth, which, bins)
    noise: list[float] = []
    null: list[float] = []
    draw = row_drawer(count, groups, rng)
    for _ in range(resamples):
        rows = draw()
        redrawn = _gaps((scores - truth)[rows], which[rows], bins)
        noise.append(float(np.abs(redrawn - observed).sum()))
        labels = rng.random(count) < scores
        null.append(float(np.abs(_gaps(scores - labels, which, bins)).sum()))
    margin = max(np.quantile(noise, CONFIDENCE), np.quantile(null, CONFIDENCE))
    which = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(which, weights=scores - truth)
    error = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(float((sums**2).sum())) / count
    return Estimate(value, max(0.0, value - float(margin)), min(1.0, value + error))


def _gaps(differences: Scores, which: NDArray[np.int64], bins: int) -> Scores:
    """Sum of score minus truth in each bin, divided by the number of rows; shape (bins,)."""
    return np.bincount(which, weights=differences, minlength=bins) / len(differences)
