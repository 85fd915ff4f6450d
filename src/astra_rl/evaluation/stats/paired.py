"""Paired comparison of two success rates on the same prompts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
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
    """Pairs of trials by outcome: success on both sides, on one only, on neither."""

    both: int
    only_a: int
    only_b: int
    neither: int


class PromptTrials(NamedTuple):
    """Trials of both sides at one prompt.

    Attributes:
        a: Whether each trial of A succeeded, by number of the trial; None if that is not known.
        b: The same of B.
    """

    a: Mapping[int, bool | None]
    b: Mapping[int, bool | None]

    @property
    def known(self) -> tuple[list[bool], list[bool]]:
        """Known outcomes of both sides."""
        return _known(self.a), _known(self.b)

    def imputed(self, a: bool, b: bool) -> PromptTrials:
        """Return the trials with the unknown outcomes of each side replaced."""
        return PromptTrials(
            {trial: a if each is None else each for trial, each in self.a.items()},
            {trial: b if each is None else each for trial, each in self.b.items()},
        )


def _known(trials: Mapping[int, bool | None]) -> list[bool]:
    return [each for each in trials.values() if each is not None]


@dataclass(frozen=True)
class PairedComparison:
    """Comparison of two success rates on the same prompts.

    Attributes:
        counts: Pairs of trials by outcome, of the trials that both sides made.
        difference: Rate of A minus rate of B, in [-1, 1], on the prompts where both have a known
            outcome; NaN without any. If the sides have different numbers of trials at a prompt, it
            is the mean over prompts of the difference of the rates at the prompt.
        interval: 95% interval of the difference, unless another confidence was asked for. It also
            covers all values of the unknown outcomes.
        p_value: Two-sided p-value of the hypothesis that A and B have equal rates, the largest over
            all values of the unknown outcomes. NaN (undecided) if they could reverse the sign of
            the difference, and without a known outcome on both sides.
        prompts: Number of prompts that the difference is based on.
        unscored: Number of pairs of trials of which one outcome is not known.
        unpaired: Number of trials at prompts that only one side played.
        bounds: Difference if the unknown outcomes were the worst for A or the worst for B; None:
            there is no unknown outcome.
        unscored_share: Larger share of unknown outcomes of both sides, on the shared prompts.
    """

    counts: PairCounts
    difference: float
    interval: Interval
    p_value: float
    prompts: int
    unscored: int = 0
    unpaired: int = 0
    bounds: Interval | None = None
    unscored_share: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        bounds = self.bounds or Interval(self.difference, self.difference)
        return {
            **self.counts._asdict(),
            "difference": self.difference,
            "low": self.interval.low,
            "high": self.interval.high,
            "lowest": bounds.low,
            "highest": bounds.high,
            "p_value": self.p_value,
            "prompts": self.prompts,
            "unscored": self.unscored,
            "unscored_share": self.unscored_share,
            "unpaired": self.unpaired,
        }


def compare_trials(
    prompts: Sequence[PromptTrials],
    *,
    unscored: int = 0,
    unpaired: int = 0,
    confidence: float = 0.95,
) -> PairedComparison:
    """Compare two success rates on the same prompts, with any number of trials per side.

    If both sides have the same trials with a known outcome at every prompt, this is
    `compare_pairs`. Otherwise the difference is the mean over prompts of the difference of rates,
    its interval is the bootstrap over prompts, and its p-value that of `permutation_test`.

    Nothing is assumed about unknown outcomes: of conversations of several turns they are failures
    more often than the known ones (`hides_failures`), so two equal sides seem to differ if only one
    of them lost scores.

    Args:
        prompts: Trials of the prompts that both sides played.
        unscored: See `PairedComparison`.
        unpaired: See `PairedComparison`.
        confidence: Of the intervals, in (0, 1).
    """
    found = replace(_compare_known(prompts, confidence), unscored=unscored, unpaired=unpaired)
    missing = [
        _share_unknown([each for prompt in prompts for each in prompt[side].values()])
        for side in (0, 1)
    ]
    if not any(missing):
        return found
    lowest = _compare_known([prompt.imputed(a=False, b=True) for prompt in prompts], confidence)
    highest = _compare_known([prompt.imputed(a=True, b=False) for prompt in prompts], confidence)
    interval = hull(lowest.interval, highest.interval)
    undecided = not found.prompts or lowest.difference <= 0 <= highest.difference
    return replace(
        found,
        interval=hull(interval, found.interval) if found.prompts else interval,
        p_value=math.nan if undecided else max(lowest.p_value, highest.p_value),
        bounds=Interval(lowest.difference, highest.difference),
        unscored_share=max(missing),
    )


def _share_unknown(trials: Sequence[bool | None]) -> float:
    return sum(each is None for each in trials) / len(trials) if trials else 0.0


def _compare_known(prompts: Sequence[PromptTrials], confidence: float) -> PairedComparison:
    known = [prompt for prompt in prompts if all(prompt.known)]
    pairs = [
        [
            (a, b)
            for trial, a in prompt.a.items()
            if a is not None and (b := prompt.b.get(trial)) is not None
        ]
        for prompt in known
    ]
    matched = compare_pairs(pairs, confidence=confidence)
    if all(
        len(each) == len(a) == len(b)
        for each, (a, b) in zip(pairs, (prompt.known for prompt in known), strict=True)
    ):
        return matched
    tables = [(sum(a), len(a), sum(b), len(b)) for a, b in (prompt.known for prompt in known)]
    leads = [a / of_a - b / of_b for a, of_a, b, of_b in tables]
    if len(leads) < 2 or len(set(leads)) < 2:
        # The spread over prompts is unknown: each prompt counts as one pair.
        shares = [(a / of_a, b / of_b) for a, of_a, b, of_b in tables]
        interval = newcombe_interval(
            math.fsum(a * b for a, b in shares),
            math.fsum(a * (1 - b) for a, b in shares),
            math.fsum((1 - a) * b for a, b in shares),
            math.fsum((1 - a) * (1 - b) for a, b in shares),
            confidence,
        )
    else:
        interval = bootstrap_interval([(lead, 1.0) for lead in leads], (-1.0, 1.0), confidence)
    return replace(
        matched,
        difference=math.fsum(leads) / len(leads),
        interval=interval,
        p_value=permutation_test(tables),
        prompts=len(leads),
    )


def compare_pairs(
    prompts: Iterable[Sequence[tuple[bool, bool]]],
    *,
    unscored: int = 0,
    unpaired: int = 0,
    confidence: float = 0.95,
) -> PairedComparison:
    """Compare two success rates from pairs of trials on the same prompts.

    Args:
        prompts: For each prompt its pairs: whether A succeeded, and whether B did.
        unscored: See `PairedComparison`.
        unpaired: See `PairedComparison`.
        confidence: Of the interval, in (0, 1).
    """
    groups = [list(pairs) for pairs in prompts if pairs]
    table = Counter(pair for pairs in groups for pair in pairs)
    counts = PairCounts(
        table[True, True], table[True, False], table[False, True], table[False, False]
    )
    pairs = sum(counts)
    lead = [sum(a - b for a, b in each) for each in groups]
    interval = newcombe_interval(*counts, confidence)
    if pairs > len(groups):  # as for one rate, see `clustered_interval`
        sizes = [float(len(each)) for each in groups]
        if len(groups) < 2 or len({a / n for a, n in zip(lead, sizes, strict=True)}) < 2:
            scale = len(groups) / pairs
            both, only_a, only_b, neither = (scale * count for count in counts)
            wider = newcombe_interval(both, only_a, only_b, neither, confidence)
        else:
            of_prompts = list(zip(map(float, lead), sizes, strict=True))
            wider = bootstrap_interval(of_prompts, (-1.0, 1.0), confidence)
        interval = hull(interval, wider)
    return PairedComparison(
        counts=counts,
        difference=(counts.only_a - counts.only_b) / pairs if pairs else math.nan,
        interval=interval,
        p_value=sign_flip_test(lead) if pairs else math.nan,
        prompts=len(groups),
        unscored=unscored,
        unpaired=unpaired,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are adjusted for their number (Holm, *Scand. J. Stat.* 6, 1979).

    Rejecting where the adjusted value is at most 5% makes a false rejection in at most 5% of the
    families, however the tests depend on each other. A missing p-value (NaN) is left out.
    """
    tested = [index for index, value in enumerate(p_values) if not math.isnan(value)]
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(sorted(tested, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def newcombe_interval(
    both: float, only_a: float, only_b: float, neither: float, confidence: float = 0.95
) -> Interval:
    """Return the interval of a difference of paired proportions, A minus B.

    Built from the Wilson intervals of both proportions and their correlation (method 10 of
    Newcombe, *Statistics in Medicine* 17, 1998, 2635). Never a point, and inside [-1, 1]. Pairs
    must be independent.

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
    """Return the exact two-sided p-value that nothing but chance tells A from B.

    If they were alike, each prompt's lead of A over B could as well be one of B over A. The p-value
    is the share of all ways to flip the signs that give a total at least as far from zero. With one
    trial per prompt this is the exact test of McNemar; with several it keeps the trials of a prompt
    together.

    Args:
        leads: Per prompt, successes of A minus successes of B.
    """
    known = [lead for lead in leads if lead]
    sizes = Counter(map(abs, known))
    total = abs(sum(known))
    chances = np.ones(1)  # of the sum, from the lowest possible in steps of 2 * greatest divisor
    step = math.gcd(*sizes) if sizes else 1
    reach = 0
    for size, count in sizes.items():
        spread = np.zeros(count * size // step + 1)
        spread[:: size // step] = _binomial_half(count)
        chances = np.convolve(chances, spread)
        reach += count * size
    sums = -reach + 2 * step * np.arange(len(chances))
    return min(1.0, float(chances[np.abs(sums) >= total].sum()))


_FINEST = 840
"""Largest common denominator of rates that `permutation_test` computes with exactly."""


def permutation_test(tables: Sequence[tuple[int, int, int, int]]) -> float:
    """Return the two-sided p-value of a permutation test, for any number of trials per prompt.

    Under the null hypothesis every assignment of a prompt's trials to A and B is equally likely, so
    the successes of A are hypergeometric. The statistic is the sum over prompts of the difference
    of rates. At a prompt with equally many trials of both sides only the sign is random, as in
    `sign_flip_test`, which keeps correlated trials together. Exact if the least common multiple of
    the numbers of trials is at most 840; otherwise the differences are rounded, and the p-value is
    rounded up.

    Args:
        tables: Per prompt: successes of A, trials of A, successes of B, trials of B.
    """
    multiple = math.lcm(*(n for _, of_a, _, of_b in tables for n in (of_a, of_b)))
    unit = min(multiple, _FINEST)

    def lead(a: int, of_a: int, b: int, of_b: int) -> int:
        return round(unit * (a / of_a - b / of_b))

    chances, offset, total = np.ones(1), 0, 0
    for a, of_a, b, of_b in tables:
        total += lead(a, of_a, b, of_b)
        law: dict[int, Fraction] = defaultdict(Fraction)
        if of_a == of_b:
            for sign in (-1, 1):
                law[sign * lead(a, of_a, b, of_b)] += Fraction(1, 2)
        else:
            ways = math.comb(of_a + of_b, a + b)
            for of_these in range(max(0, a + b - of_b), min(of_a, a + b) + 1):
                share = Fraction(
                    math.comb(of_a, of_these) * math.comb(of_b, a + b - of_these), ways
                )
                law[lead(of_these, of_a, a + b - of_these, of_b)] += share
        low = min(law)
        spread = np.zeros(max(law) - low + 1)
        for value, chance in law.items():
            spread[value - low] = float(chance)
        chances = np.convolve(chances, spread)
        offset += low
    sums = offset + np.arange(len(chances))
    slack = len(tables) if multiple > unit else 0
    return min(1.0, float(chances[np.abs(sums) >= abs(total) - slack].sum()))


def _binomial_half(count: int) -> Array:
    """Return the probabilities of 0, 1, ... `count` under Binomial(count, 1/2)."""
    outcomes = range(count + 1)
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in outcomes
    ]
    return np.exp(np.array(logs) - count * math.log(2))
