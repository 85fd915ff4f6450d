"""Intervals and exact tests of paired proportions, and p-values adjusted for their number."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from astra_rl.evaluation.stats.intervals import (
    Array,
    Interval,
    student_tails,
    wilson_interval,
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


def sign_flip_test(leads: Iterable[int] | Counter[int]) -> float:
    """Return the exact two-sided p-value that nothing but chance tells A from B.

    If they were alike, each prompt's lead of A over B could as well be one of B over A. The p-value
    is the share of all ways to flip the signs that give a total at least as far from zero. With one
    trial per prompt this is the exact test of McNemar; with several it keeps the trials of a prompt
    together.

    Args:
        leads: Per prompt, successes of A minus successes of B; or the number of prompts by it.
    """
    sizes: Counter[int] = Counter()
    total = 0
    for lead, count in Counter(leads).items():
        if lead:
            sizes[abs(lead)] += count
            total += count * lead
    total = abs(total)
    chances = np.ones(1)  # of the sum, from the lowest possible in steps of 2 * greatest divisor
    step = math.gcd(*sizes) if sizes else 1
    reach = 0
    for size, count in sorted(sizes.items()):  # rounding is that of any order of the prompts
        spread = np.zeros(count * size // step + 1)
        spread[:: size // step] = _binomial_half(count)
        chances = _convolved(chances, spread)
        reach += count * size
    sums = -reach + 2 * step * np.arange(len(chances))
    return min(1.0, float(chances[np.abs(sums) >= total].sum()))


def mean_lead_test(leads: Counter[float]) -> float:
    """Return the two-sided p-value that the leads of A over B are zero on average.

    Sign flips also need leads of either sign to be equally likely. That fails where A is a little
    better at most prompts and far worse at a few: of ten prompts all leads are then often of one
    sign, although both sides are equal on average. This is Student's t with half a prompt added at
    either limit, as in `bootstrap_interval`, for the few that a sample may not show. If all leads
    are equal, nothing shows their spread: each prompt counts as one pair, see `newcombe_interval`.

    Args:
        leads: Number of prompts by the rate of A minus that of B, in [-1, 1].
    """
    prompts = leads.total()
    total = math.fsum(lead * count for lead, count in leads.items())
    if prompts < 2 or not total:
        return 1.0
    if len(leads) == 1:
        pairs = math.ceil(abs(total) - 1e-9)
        return min(1.0, 2.0 ** (1 - pairs))
    mean = total / (prompts + 1)
    squares = math.fsum(count * (lead - mean) ** 2 for lead, count in leads.items())
    squares += ((1 - mean) ** 2 + (1 + mean) ** 2) / 4
    error = math.sqrt(squares * prompts / (prompts - 1)) / (prompts + 1)
    return student_tails(abs(mean) / error, prompts - 1)


_FINEST = 840
"""Largest common denominator of rates that `permutation_test` computes with exactly."""


def permutation_test(
    tables: Iterable[tuple[int, int, int, int]] | Counter[tuple[int, int, int, int]],
) -> float:
    """Return the two-sided p-value of a permutation test, for any number of trials per prompt.

    The null hypothesis is that both sides are alike at every prompt, not only on average. Then
    every assignment of a prompt's trials to A and B is equally likely, so the successes of A are
    hypergeometric. The statistic is the sum over prompts of the difference of rates. At a prompt
    with equally many trials of both sides only the sign is random, as in `sign_flip_test`, which
    keeps correlated trials together. Exact if the least common multiple of the numbers of trials is
    at most 840; otherwise the differences are rounded, and the p-value is rounded up.

    Args:
        tables: Per prompt: successes of A, trials of A, successes of B, trials of B; or the number
            of prompts by them.
    """
    tables = Counter(tables)
    multiple = _multiple(tables)
    unit = min(multiple, _FINEST)

    def lead(*table: int) -> int:
        return _rate_lead(unit, *table)

    chances, offset, total = np.ones(1), 0, 0
    for (a, of_a, b, of_b), prompts in sorted(tables.items()):
        total += prompts * lead(a, of_a, b, of_b)
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
        chances = _convolved(chances, _power(spread, prompts))
        offset += prompts * low
    sums = offset + np.arange(len(chances))
    slack = tables.total() if multiple > unit else 0
    return min(1.0, float(chances[np.abs(sums) >= abs(total) - slack].sum()))


def _multiple(tables: Iterable[tuple[int, int, int, int]]) -> int:
    """Return the least common multiple of the numbers of trials."""
    return math.lcm(*(n for _, of_a, _, of_b in tables for n in (of_a, of_b)))


def _rate_lead(unit: int, a: int, of_a: int, b: int, of_b: int) -> int:
    """Return the rate of A minus that of B, in parts of a unit."""
    return round(unit * (a / of_a - b / of_b))


def rate_leads(tables: Counter[tuple[int, int, int, int]]) -> Counter[int]:
    """Return the number of prompts by the rate of A minus that of B."""
    unit = min(_multiple(tables), _FINEST)
    leads: Counter[int] = Counter()
    for table, count in tables.items():
        leads[_rate_lead(unit, *table)] += count
    return leads


_DIRECT = 1 << 24
"""Most products of a convolution that is computed term by term."""


def _convolved(a: Array, b: Array) -> Array:
    """Return the distribution of a sum; long ones by Fourier transform, to 1e-15 absolutely."""
    if len(a) * len(b) <= _DIRECT:
        return np.convolve(a, b)
    size = len(a) + len(b) - 1
    length = 1 << (size - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(a, length) * np.fft.rfft(b, length), length)[:size]
    return np.clip(product, 0.0, None)


def _power(law: Array, count: int) -> Array:
    """Return the distribution of the sum of `count` independent draws, at least one."""
    found: Array | None = None
    while True:
        if count & 1:
            found = law if found is None else _convolved(found, law)
        count >>= 1
        if not count:
            return law if found is None else found
        law = _convolved(law, law)


def _binomial_half(count: int) -> Array:
    """Return the probabilities of 0, 1, ... `count` under Binomial(count, 1/2)."""
    outcomes = range(count + 1)
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in outcomes
    ]
    return np.exp(np.array(logs) - count * math.log(2))
