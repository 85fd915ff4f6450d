"""Paired comparison of two success rates on the same prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from astra_rl.evaluation.stats.intervals import (
    Array,
    Interval,
    bootstrap_interval,
    hull,
    wilson_interval,
)


class PairCounts(NamedTuple):
    """Contingency table of the successes of A and B on the same trials."""

    both: int
    only_a: int
    only_b: int
    neither: int


@dataclass(frozen=True)
class PairedComparison:
    """Two rates on the same prompts.

    Attributes:
        counts: Pairs of trials by outcome.
        difference: Rate of A minus rate of B, in [-1, 1]; NaN without pairs.
        interval: 95% interval of the difference.
        p_value: Two-sided p-value of the hypothesis that A and B have equal rates.
        prompts: Number of different prompts among the pairs.
        unscored: Number of pairs with an unknown outcome, excluded from all other numbers.
        unpaired: Number of trials that only one side made.
    """

    counts: PairCounts
    difference: float
    interval: Interval
    p_value: float
    prompts: int
    unscored: int = 0
    unpaired: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers by name, as JSON values."""
        return {
            **self.counts._asdict(),
            "difference": self.difference,
            "low": self.interval.low,
            "high": self.interval.high,
            "p_value": self.p_value,
            "prompts": self.prompts,
            "unscored": self.unscored,
            "unpaired": self.unpaired,
        }


def compare_pairs(
    prompts: Iterable[Sequence[tuple[bool, bool]]], *, unscored: int = 0, unpaired: int = 0
) -> PairedComparison:
    """Compare two rates on the same prompts.

    Args:
        prompts: The pairs of each prompt: whether A succeeded, and whether B did.
        unscored: See `PairedComparison`.
        unpaired: See `PairedComparison`.
    """
    groups = [list(pairs) for pairs in prompts if pairs]
    table = Counter(pair for pairs in groups for pair in pairs)
    counts = PairCounts(
        table[True, True], table[True, False], table[False, True], table[False, False]
    )
    pairs = sum(counts)
    lead = [sum(a - b for a, b in each) for each in groups]
    interval = newcombe_interval(*counts)
    if pairs > len(groups):  # as for one rate, see `clustered_interval`
        sizes = [float(len(each)) for each in groups]
        if len(groups) < 2 or len({a / n for a, n in zip(lead, sizes, strict=True)}) < 2:
            scale = len(groups) / pairs
            wider = newcombe_interval(*(scale * count for count in counts))
        else:
            wider = bootstrap_interval(list(zip(map(float, lead), sizes, strict=True)), (-1.0, 1.0))
        interval = hull(interval, wider)
    return PairedComparison(
        counts=counts,
        difference=(counts.only_a - counts.only_b) / pairs if pairs else math.nan,
        interval=interval,
        p_value=sign_flip_test(lead),
        prompts=len(groups),
        unscored=unscored,
        unpaired=unpaired,
    )


def newcombe_interval(
    both: float, only_a: float, only_b: float, neither: float, confidence: float = 0.95
) -> Interval:
    """Return the interval of a difference of paired proportions, A minus B.

    Built from the Wilson intervals of both proportions and their correlation (method 10 of
    Newcombe, *Statistics in Medicine* 17, 1998, 2635). It has a positive width and
    stays inside [-1, 1]. Pairs must be independent.

    Returns:
        The interval; (-1, 1) without pairs.
    """
    pairs = both + only_a + only_b + neither
    if not pairs:
        return Interval(-1.0, 1.0)
    a, b = (both + only_a) / pairs, (both + only_b) / pairs
    low_a, high_a = wilson_interval(both + only_a, pairs, confidence)
    low_b, high_b = wilson_interval(both + only_b, pairs, confidence)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    excess = both * neither - only_a * only_b
    if excess > 0:
        excess = max(excess - pairs / 2, 0)
    phi = excess / math.sqrt(margins) if margins else 0.0

    def reach(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))

    return Interval(
        max(-1.0, a - b - reach(a - low_a, high_b - b)),
        min(1.0, a - b + reach(high_a - a, b - low_b)),
    )


def sign_flip_test(leads: Iterable[int]) -> float:
    """Return the exact two-sided p-value of a sign-flip (permutation) test.

    Under the null hypothesis the sign of each prompt's lead is random. The p-value is the share of
    all sign assignments whose total is at least as far from zero as the observed one. With one
    trial per prompt this is McNemar's exact test; with several, the trials of a prompt are flipped
    together.

    Args:
        leads: For each prompt, successes of A minus successes of B.
    """
    known = [lead for lead in leads if lead]
    sizes = Counter(map(abs, known))
    total = abs(sum(known))
    chances = np.ones(1)  # of the total, from the lowest possible one in steps of 2 * gcd
    step = math.gcd(*sizes) if sizes else 1
    reach = 0
    for size, count in sizes.items():
        spread = np.zeros(count * size // step + 1)
        spread[:: size // step] = _binomial_half(count)
        chances = np.convolve(chances, spread)
        reach += count * size
    sums = -reach + 2 * step * np.arange(len(chances))
    return min(1.0, float(chances[np.abs(sums) >= total].sum()))


def _binomial_half(count: int) -> Array:
    """Return the probabilities of 0, 1, ... `count` under Binomial(count, 1/2)."""
    outcomes = range(count + 1)
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in outcomes
    ]
    return np.exp(np.array(logs) - count * math.log(2))
