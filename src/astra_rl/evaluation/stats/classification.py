"""Decisions of a binary classifier at a threshold: confusion matrix, sensitivity, specificity.

See `resampling` for `truth` and `scores`. A row is predicted positive if its score is at least the
threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from astra_rl.evaluation.stats.intervals import (
    Interval,
    clustered_interval,
    proportion_interval,
)
from astra_rl.evaluation.stats.resampling import Estimate, Groups, Scores, Truth


class Confusion(NamedTuple):
    """Confusion matrix: counts of rows by true and predicted class."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int


Share = Callable[[Confusion], tuple[int, int]]
"""A share of the rows: how many count, of how many."""


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
