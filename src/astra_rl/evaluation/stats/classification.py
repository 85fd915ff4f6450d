"""Metrics of binary classification, as pure functions.

`truth` is a bool array of shape (N,), `scores` a float array in [0, 1] of shape (N,) without
missing values. A row is predicted positive if its score is at least the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from astra_rl.evaluation.stats.intervals import (
    Interval,
    bootstrap_interval,
    clustered_interval,
    hull,
    proportion_interval,
)
from astra_rl.evaluation.stats.rates import Rate

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


class Confusion(NamedTuple):
    """Confusion matrix: counts of rows by true and predicted class."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int


Share = Callable[[Confusion], tuple[int, int]]
"""A share of the rows: how many count, of how many."""


class Point(NamedTuple):
    """A point of a curve and its threshold."""

    x: float
    y: float
    threshold: float


@dataclass(frozen=True)
class Bin:
    """A bin of a reliability diagram.

    Attributes:
        mean_score: Mean score of its rows.
        positives: Rate of positive rows.
    """

    mean_score: float
    positives: Rate


def confusion(truth: Truth, scores: Scores, threshold: float) -> Confusion:
    """Return the confusion matrix at a threshold."""
    called = scores >= threshold
    return Confusion(
        int((truth & called).sum()),
        int((~truth & called).sum()),
        int((~truth & ~called).sum()),
        int((truth & ~called).sum()),
    )


def confusion_by_group(
    truth: Truth, scores: Scores, threshold: float, groups: Groups
) -> tuple[Confusion, ...]:
    """Return the confusion matrix of each group of rows, in the order of the groups."""
    return tuple(
        confusion(truth[groups == group], scores[groups == group], threshold)
        for group in np.unique(groups)
    )


def decisions(counts: Confusion, by_group: Sequence[Confusion] = ()) -> dict[str, Estimate]:
    """Return accuracy, precision, recall, specificity and F1, each with its interval.

    The first four are proportions, see `share_interval`. F1 is ``2J / (1 + J)``,
    where ``J`` is the Jaccard index ``TP / (TP + FP + FN)``; its interval is the transformed
    interval of J, which has a positive width even if no or every row is classified correctly.

    Args:
        counts: Confusion matrix of all rows.
        by_group: Those of groups of rows, whose sum it is. Empty: rows are independent.
    """

    def share(of: Share) -> Estimate:
        successes, trials = of(counts)
        interval = share_interval(counts, by_group, of)
        return Estimate(successes / trials if trials else math.nan, *interval)

    overlap = share(lambda c: (c.true_positives, sum(c) - c.true_negatives))
    return {
        "accuracy": share(lambda c: (c.true_positives + c.true_negatives, sum(c))),
        "precision": share(lambda c: (c.true_positives, c.true_positives + c.false_positives)),
        "recall": share(sensitivity),
        "specificity": share(specificity),
        "f1": Estimate(*(2 * j / (1 + j) for j in (overlap.value, overlap.low, overlap.high))),
    }


def sensitivity(counts: Confusion) -> tuple[int, int]:
    """Return the number of positive rows that are called so, and of positive rows."""
    return counts.true_positives, counts.true_positives + counts.false_negatives


def specificity(counts: Confusion) -> tuple[int, int]:
    """Return the number of negative rows that are called so, and of negative rows."""
    return counts.true_negatives, counts.true_negatives + counts.false_positives


def share_interval(
    counts: Confusion, by_group: Sequence[Confusion], of: Share, confidence: float = 0.95
) -> Interval:
    """Return the interval of a share of the rows.

    Args:
        counts: Confusion matrix of all rows.
        by_group: Those of groups of rows, whose sum it is: `clustered_interval`. Empty: rows are
            independent, `proportion_interval`.
        of: Which share.
        confidence: In (0, 1).
    """
    if by_group:
        return clustered_interval(map(of, by_group), confidence)
    return proportion_interval(*of(counts), confidence)


def roc_curve(truth: Truth, scores: Scores) -> list[Point]:
    """Return (false positive rate, true positive rate) at each threshold that changes them."""
    hits, calls, thresholds = _cumulative(truth, scores)
    positives, negatives = max(1, int(truth.sum())), max(1, int((~truth).sum()))
    return [
        Point(0.0, 0.0, math.inf),
        *_points((calls - hits) / negatives, hits / positives, thresholds),
    ]


def precision_recall_curve(truth: Truth, scores: Scores) -> list[Point]:
    """Return (recall, precision) at each threshold that changes them, from the highest down."""
    hits, calls, thresholds = _cumulative(truth, scores)
    return _points(hits / max(1, int(truth.sum())), hits / calls, thresholds)


def _points(x: Scores, y: Scores, thresholds: Scores) -> list[Point]:
    return [Point(*each) for each in zip(x.tolist(), y.tolist(), thresholds.tolist(), strict=True)]


def _cumulative(
    truth: Truth, scores: Scores
) -> tuple[NDArray[np.int64], NDArray[np.int64], Scores]:
    """Positives and rows with at least each score, and the scores, highest first."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(truth[order], dtype=np.int64)
    index = np.flatnonzero(np.append(np.diff(ordered) != 0, True)[: len(ordered)])
    return hits[index], (index + 1).astype(np.int64), ordered[index]


def auroc(truth: Truth, scores: Scores) -> float:
    """Return the area under the ROC curve; NaN if a class is empty.

    It is the probability that a positive row scores above a negative one, ties counting half
    (Hanley and McNeil, *Radiology* 143, 1982).
    """
    positives, negatives = scores[truth], np.sort(scores[~truth])
    if not len(positives) or not len(negatives):
        return math.nan
    below = np.searchsorted(negatives, positives, "left")
    up_to = np.searchsorted(negatives, positives, "right")
    return float((below + up_to).sum() / (2 * len(positives) * len(negatives)))


def auroc_estimate(
    truth: Truth,
    scores: Scores,
    groups: Groups | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return the AUROC with the score interval of Newcombe (*Stat. Med.* 25, 559, 2006, method 5).

    Unlike a bootstrap interval it has a positive width if the classes are perfectly separated. Rows
    in groups widen it to a bootstrap over groups.
    """
    area = auroc(truth, scores)
    m, n = int(truth.sum()), int((~truth).sum())
    if math.isnan(area):
        return Estimate(area)
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)

    def outside(theta: float) -> bool:
        size = (m + n) / 2 - 1
        spread = 1 + size * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(area - theta) > z * math.sqrt(theta * (1 - theta) / (m * n) * spread)

    interval = Interval(_edge(area, 0.0, outside), _edge(area, 1.0, outside))
    if groups is not None:
        drawn = bootstrap(truth, scores, {"auroc": auroc}, groups, resamples=resamples, seed=seed)[
            "auroc"
        ]
        interval = _widened(interval, drawn)
    return Estimate(area, *interval)


def _widened(interval: Interval, drawn: Estimate) -> Interval:
    """Return the hull of an interval and that of an estimate, if this has one."""
    return interval if math.isnan(drawn.low) else hull(interval, Interval(drawn.low, drawn.high))


def _edge(inside: float, far: float, outside: Callable[[float], bool]) -> float:
    """Find the end of an interval by bisection between a point inside and the end of the range."""
    if not outside(far):
        return far
    near = inside
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (near, middle) if outside(middle) else (middle, far)
    return near


def average_precision(truth: Truth, scores: Scores) -> float:
    """Return the area under the stepwise precision-recall curve; NaN without positive rows."""
    if not truth.any():
        return math.nan
    hits, calls, _ = _cumulative(truth, scores)
    return float((np.diff(hits, prepend=0) * hits / calls).sum() / truth.sum())


def average_precision_estimate(
    truth: Truth,
    scores: Scores,
    groups: Groups | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return the average precision with its interval.

    The bootstrap interval alone covers 86% to 90% of the time with few positive rows. It is widened
    to the interval of a proportion: the average precision is the mean, over the positive rows, of
    a precision in [0, 1] (binomial interval of Boyd, Eng and Page, ECML PKDD 2013). Positive rows
    of one group count as one.
    """
    statistics = {"ap": average_precision}
    found = bootstrap(truth, scores, statistics, groups, resamples=resamples, seed=seed)["ap"]
    if math.isnan(found.value):
        return found
    positives = int(truth.sum()) if groups is None else len(np.unique(groups[truth]))
    interval = proportion_interval(found.value * positives, positives)
    return Estimate(found.value, *_widened(interval, found))


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
    draw = _drawer(count, groups, rng)
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


def best_threshold(truth: Truth, scores: Scores) -> tuple[float, float]:
    """Return the threshold with the highest F1, and that F1; NaN without positive rows.

    It lies halfway between two adjacent scores, so that it generalises to new rows.
    """
    if not truth.any():
        return math.nan, math.nan
    hits, calls, thresholds = _cumulative(truth, scores)
    f1 = 2 * hits / (calls + truth.sum())
    best = int(f1.argmax())
    lower = thresholds[min(best + 1, len(thresholds) - 1)]
    return float(thresholds[best] + lower) / 2, float(f1[best])


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
    draw = _drawer(len(scores), groups, np.random.default_rng(seed))
    drawn: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(resamples if len(scores) else 0):
        rows = draw()
        for name, statistic in statistics.items():
            drawn[name].append(statistic(truth[rows], scores[rows]))
    return {
        name: percentile_estimate(statistic(truth, scores), drawn[name])
        for name, statistic in statistics.items()
    }


def _drawer(
    count: int, groups: Groups | None, rng: np.random.Generator
) -> Callable[[], NDArray[np.int64]]:
    """Return a function that draws rows with replacement, whole groups where there are groups."""
    if groups is None:
        return lambda: rng.integers(count, size=count)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return lambda: np.concatenate(
        [members[each] for each in rng.integers(len(members), size=len(members))]
    )


def best_threshold_estimates(
    truth: Truth,
    scores: Scores,
    groups: Groups | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """Return the threshold with the highest F1, and the expected F1 of a threshold chosen this way.

    The F1 on the rows that the threshold was chosen on is biased upwards. Here each bootstrap
    resample chooses a threshold, and F1 is computed on the rows that the resample left out
    (out-of-bag, Breiman 1996).
    """
    draw = _drawer(len(scores), groups, np.random.default_rng(seed))
    chosen: list[float] = []
    judged: list[float] = []
    for _ in range(resamples if len(scores) else 0):
        rows = draw()
        left_out = np.bincount(rows, minlength=len(scores)) == 0
        threshold, _ = best_threshold(truth[rows], scores[rows])
        tp, fp, _, fn = confusion(truth[left_out], scores[left_out], threshold)
        chosen.append(threshold)
        judged.append(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan)
    usual = float(np.nanmean(judged)) if not np.isnan(judged).all() else math.nan
    return (
        percentile_estimate(best_threshold(truth, scores)[0], chosen),
        percentile_estimate(usual, judged),
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
