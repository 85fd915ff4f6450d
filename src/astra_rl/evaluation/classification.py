"""How well scores tell two classes apart, and how well raters agree. Pure functions of numbers.

`truth` is an array of bools, shape (N,); `scores` one of floats in [0, 1], shape (N,), none
missing. A row is called positive if its score is at least the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.statistics import Rate, wilson_interval

Truth = NDArray[np.bool_]
Scores = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval; NaN where there is none.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def as_dict(self) -> dict[str, float]:
        """Return the three by name."""
        return {"value": self.value, "low": self.low, "high": self.high}


class Confusion(NamedTuple):
    """Counts of rows by what they are and what they were called."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int


class Point(NamedTuple):
    """A point of a curve, and the threshold that gives it."""

    x: float
    y: float
    threshold: float


@dataclass(frozen=True)
class Bin:
    """Rows of similar score.

    Attributes:
        mean_score: Their mean score.
        positives: How many of them are positive.
    """

    mean_score: float
    positives: Rate


def confusion(truth: Truth, scores: Scores, threshold: float) -> Confusion:
    """Count right and wrong calls at a threshold."""
    called = scores >= threshold
    return Confusion(
        int((truth & called).sum()),
        int((~truth & called).sum()),
        int((~truth & ~called).sum()),
        int((truth & ~called).sum()),
    )


def decisions(counts: Confusion) -> dict[str, Estimate]:
    """Return accuracy, precision, recall, specificity and F1, each with its interval.

    The first four are proportions and get Wilson intervals. F1 is ``2J / (1 + J)`` of the
    proportion ``J`` of true positives among the rows that are positive or called so; its interval
    is Wilson's for J, carried over, which keeps a width when nothing or everything is right.
    """
    tp, fp, tn, fn = counts
    overlap = _proportion(tp, tp + fp + fn)
    return {
        "accuracy": _proportion(tp + tn, sum(counts)),
        "precision": _proportion(tp, tp + fp),
        "recall": _proportion(tp, tp + fn),
        "specificity": _proportion(tn, tn + fp),
        "f1": Estimate(*(2 * j / (1 + j) for j in (overlap.value, overlap.low, overlap.high))),
    }


def _proportion(successes: int, trials: int) -> Estimate:
    return Estimate(successes / trials if trials else math.nan, *wilson_interval(successes, trials))


def roc_curve(truth: Truth, scores: Scores) -> list[Point]:
    """Return (false positive rate, true positive rate) at each threshold that changes them."""
    hits, calls, thresholds = _cumulative(truth, scores)
    positives, negatives = max(1, int(truth.sum())), max(1, int((~truth).sum()))
    points = [Point(0.0, 0.0, math.inf)]
    for hit, call, threshold in zip(hits, calls, thresholds, strict=True):
        points.append(Point((call - hit) / negatives, hit / positives, threshold))
    return points


def precision_recall_curve(truth: Truth, scores: Scores) -> list[Point]:
    """Return (recall, precision) at each threshold that changes them, from the highest down."""
    hits, calls, thresholds = _cumulative(truth, scores)
    positives = max(1, int(truth.sum()))
    return [
        Point(hit / positives, hit / call, threshold)
        for hit, call, threshold in zip(hits, calls, thresholds, strict=True)
    ]


def _cumulative(truth: Truth, scores: Scores) -> tuple[list[int], list[int], list[float]]:
    """Positives and rows with at least each score, and the scores, highest first."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(truth[order])
    index = np.flatnonzero(np.append(np.diff(ordered) != 0, True)[: len(ordered)])
    return hits[index].tolist(), (index + 1).tolist(), ordered[index].tolist()


def auroc(truth: Truth, scores: Scores) -> float:
    """Chance that a positive row scores above a negative one, ties counting half; NaN if one lacks.

    It is the area under the ROC curve (Hanley and McNeil, *Radiology* 143, 1982).
    """
    positives, negatives = scores[truth], np.sort(scores[~truth])
    if not len(positives) or not len(negatives):
        return math.nan
    below = np.searchsorted(negatives, positives, "left")
    up_to = np.searchsorted(negatives, positives, "right")
    return float((below + up_to).sum() / (2 * len(positives) * len(negatives)))


def auroc_estimate(truth: Truth, scores: Scores) -> Estimate:
    """Return the AUROC with the score interval of Newcombe (*Stat. Med.* 25, 559, 2006, method 5).

    Unlike a bootstrap it keeps a width when the classes are told apart perfectly.
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

    return Estimate(area, _edge(area, 0.0, outside), _edge(area, 1.0, outside))


def _edge(inside: float, far: float, outside: Callable[[float], bool]) -> float:
    """Find by bisection where an interval ends between a point inside and the end of the range."""
    if not outside(far):
        return far
    near = inside
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (near, middle) if outside(middle) else (middle, far)
    return near


def average_precision(truth: Truth, scores: Scores) -> float:
    """Mean precision over the recall gained: the area under the stepwise PR curve; NaN if none."""
    if not truth.any():
        return math.nan
    points = precision_recall_curve(truth, scores)
    before = [0.0, *(point.x for point in points)]
    return math.fsum(
        (point.x - last) * point.y for point, last in zip(points, before, strict=False)
    )


def brier(truth: Truth, scores: Scores) -> float:
    """Mean squared difference of score and truth: 0 is perfect, 0.25 is a score of one half."""
    return float(np.mean((scores - truth) ** 2)) if len(scores) else math.nan


def reliability(truth: Truth, scores: Scores, bins: int = 10) -> list[Bin]:
    """Group rows into bins of equal width and compare their scores with what they are."""
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
    """Expected calibration error: mean distance of score and rate over the bins, by their size."""
    if not len(scores):
        return math.nan
    found = reliability(truth, scores, bins)
    gaps = (abs(b.mean_score - b.positives.estimate) * b.positives.trials for b in found)
    return math.fsum(gaps) / len(scores)


def best_threshold(truth: Truth, scores: Scores) -> tuple[float, float]:
    """Return the threshold with the highest F1, and that F1; NaN without positive rows.

    It lies halfway to the next lower score, so that it means the same for new rows.
    """
    if not truth.any():
        return math.nan, math.nan
    hits, calls, thresholds = _cumulative(truth, scores)
    f1 = [2 * hit / (call + int(truth.sum())) for hit, call in zip(hits, calls, strict=True)]
    best = max(range(len(f1)), key=f1.__getitem__)
    lower = thresholds[best + 1] if best + 1 < len(thresholds) else thresholds[best]
    return (thresholds[best] + lower) / 2, f1[best]


def bootstrap(
    truth: Truth,
    scores: Scores,
    statistics: Mapping[str, Callable[[Truth, Scores], float]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return statistics with percentile intervals over resampled rows.

    An interval is missing where resampling says nothing: all resamples gave the same value, or
    more than a tenth gave none. Rows must be independent of each other.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(resamples if len(scores) else 0):
        rows = rng.integers(len(scores), size=len(scores))
        for name, statistic in statistics.items():
            drawn[name].append(statistic(truth[rows], scores[rows]))
    return {
        name: _percentiles(statistic(truth, scores), drawn[name])
        for name, statistic in statistics.items()
    }


def best_threshold_estimates(
    truth: Truth, scores: Scores, *, resamples: int = 2000, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Return the best threshold, and the F1 to expect of it on rows that did not choose it.

    The F1 at the best threshold of the very rows that chose it is too good. Here each resample
    chooses a threshold, and the rows that it left out judge it (out-of-bag, Breiman 1996).
    """
    rng = np.random.default_rng(seed)
    chosen: list[float] = []
    judged: list[float] = []
    for _ in range(resamples if len(scores) else 0):
        rows = rng.integers(len(scores), size=len(scores))
        left_out = np.setdiff1d(np.arange(len(scores)), rows)
        threshold, _ = best_threshold(truth[rows], scores[rows])
        chosen.append(threshold)
        judged.append(
            decisions(confusion(truth[left_out], scores[left_out], threshold))["f1"].value
        )
    usual = float(np.nanmean(judged)) if not np.isnan(judged).all() else math.nan
    return (
        _percentiles(best_threshold(truth, scores)[0], chosen),
        _percentiles(usual, judged),
    )


def _percentiles(value: float, drawn: Sequence[float]) -> Estimate:
    finite = np.asarray([each for each in drawn if math.isfinite(each)])
    if math.isnan(value) or len(finite) < 0.9 * len(drawn) or not len(finite):
        return Estimate(value)
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high)) if low < high else Estimate(value)


def krippendorff_alpha(
    ratings: Sequence[Sequence[float]], level: Literal["nominal", "interval"] = "nominal"
) -> float:
    """Agreement of raters beyond chance: 1 is perfect, 0 is chance, below 0 is contradiction.

    ``1 - D_o / D_e`` with the observed disagreement within units and the one expected if ratings
    were dealt out at random (Krippendorff 2011, *Computing Krippendorff's Alpha-Reliability*).

    Args:
        ratings: One row per unit, one column per rater, NaN where a rater did not rate. Units with
            fewer than two ratings count for nothing.
        level: ``"nominal"`` tells equal from different, ``"interval"`` squares differences.

    Returns:
        NaN if there is nothing to compare, or all ratings are the same value.

    Raises:
        ConfigurationError: There is no such level.
    """
    if level not in ("nominal", "interval"):
        raise ConfigurationError(f"level={level!r}; choose 'nominal' or 'interval'.")
    units = [[value for value in unit if not math.isnan(value)] for unit in ratings]
    units = [unit for unit in units if len(unit) > 1]
    everything = [value for unit in units for value in unit]
    if not everything:
        return math.nan
    differences = _nominal_differences if level == "nominal" else _squared_differences
    observed = math.fsum(differences(unit) / (len(unit) - 1) for unit in units)
    expected = differences(everything) / (len(everything) - 1)
    return 1 - observed / expected if expected else math.nan


def alpha_estimate(
    ratings: Sequence[Sequence[float]],
    level: Literal["nominal", "interval"] = "nominal",
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return Krippendorff's alpha with a percentile interval over resampled units."""
    rng = np.random.default_rng(seed)
    drawn = [
        krippendorff_alpha(
            [ratings[row] for row in rng.integers(len(ratings), size=len(ratings))], level
        )
        for _ in range(resamples if ratings else 0)
    ]
    return _percentiles(krippendorff_alpha(ratings, level), drawn)


def _nominal_differences(values: Sequence[float]) -> float:
    """How many ordered pairs differ."""
    _, counts = np.unique(np.asarray(values), return_counts=True)
    return float(len(values) ** 2 - (counts.astype(float) ** 2).sum())


def _squared_differences(values: Sequence[float]) -> float:
    """Sum of squared differences over ordered pairs: ``2 n sum (x - mean)^2``."""
    array: NDArray[Any] = np.asarray(values, dtype=float)
    return float(2 * len(array) * ((array - array.mean()) ** 2).sum())
