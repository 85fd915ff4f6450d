"""Paired comparison of two success rates on the same prompts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np

from astra_rl.evaluation.stats.intervals import (
    Array,
    Interval,
    bootstrap_interval,
    hull,
    wilson_interval,
)
from astra_rl.evaluation.stats.sequential import confidence_sequence, log_e_value


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


class PromptTable(NamedTuple):
    """Trials of both sides at one prompt, counted: many prompts have the same table.

    Attributes:
        pairs: Trials that both sides made, 3 x 3 counts: by the outcome of A (success, failure, not
            known), then by that of B.
        only_a: Trials that only A made, by outcome.
        only_b: Trials that only B made, by outcome.
    """

    pairs: tuple[int, ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]

    @classmethod
    def of(cls, a: Mapping[int, bool | None], b: Mapping[int, bool | None]) -> PromptTable:
        """Count the trials of a prompt, see `PromptTrials`."""
        pairs = Counter((outcome, b[trial]) for trial, outcome in a.items() if trial in b)
        only_a = Counter(outcome for trial, outcome in a.items() if trial not in b)
        only_b = Counter(outcome for trial, outcome in b.items() if trial not in a)
        return cls(
            tuple(pairs[of_a, of_b] for of_a in _OUTCOMES for of_b in _OUTCOMES),
            tuple(only_a[each] for each in _OUTCOMES),
            tuple(only_b[each] for each in _OUTCOMES),
        )

    @property
    def a(self) -> tuple[int, int, int]:
        """Successes, failures and unknown outcomes of A."""
        first, second, third = (sum(self.pairs[at : at + 3]) for at in (0, 3, 6))
        return first + self.only_a[0], second + self.only_a[1], third + self.only_a[2]

    @property
    def b(self) -> tuple[int, int, int]:
        """Successes, failures and unknown outcomes of B."""
        first, second, third = (sum(self.pairs[at::3]) for at in (0, 1, 2))
        return first + self.only_b[0], second + self.only_b[1], third + self.only_b[2]

    @property
    def known(self) -> PairCounts:
        """Trials whose outcomes are known on both sides."""
        return PairCounts(self.pairs[0], self.pairs[1], self.pairs[3], self.pairs[4])

    @property
    def unscored(self) -> int:
        """Trials of both sides of which one outcome is not known."""
        return sum(self.pairs) - sum(self.known)

    @property
    def trials(self) -> int:
        """Trials of both sides together."""
        return sum(self.a) + sum(self.b)

    def imputed(self, a: bool, b: bool) -> PromptTable:
        """Return the table with the unknown outcomes of each side replaced."""
        pairs = [0] * 9
        at_a, at_b = _OUTCOMES.index(a), _OUTCOMES.index(b)
        for at, count in enumerate(self.pairs):
            row, column = divmod(at, 3)
            pairs[3 * (at_a if row == 2 else row) + (at_b if column == 2 else column)] += count
        return PromptTable(tuple(pairs), _imputed(self.only_a, at_a), _imputed(self.only_b, at_b))


_OUTCOMES = (True, False, None)


def _imputed(counts: tuple[int, ...], at: int) -> tuple[int, ...]:
    found = [*counts[:2], 0]
    found[at] += counts[2]
    return tuple(found)


@dataclass(frozen=True)
class PairedComparison:
    """Comparison of two success rates on the same prompts.

    Attributes:
        counts: Pairs of trials by outcome, of the trials that both sides made.
        difference: Rate of A minus rate of B, in [-1, 1], on the prompts where both have a known
            outcome; NaN without any. If the sides have different numbers of trials at a prompt, it
            is the mean over prompts of the difference of the rates at the prompt. With unknown
            outcomes of conversations of several turns it is that of the estimates by turn
            (`Courses.rate`), or NaN if one does not exist.
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
        sequential: Whether interval and p-value hold at every time at which an evaluation may have
            stopped early.
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
    sequential: bool = False

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
            "sequential": self.sequential,
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
    its interval is the bootstrap over prompts, and its p-value the larger of `permutation_test`,
    which is exact if both sides are alike at every prompt, and `sign_flip_test` of the differences
    of rates. The former alone is far too small where each side is better at some prompts, because
    it does not see that differences vary between prompts.

    Nothing is assumed about unknown outcomes: of conversations of several turns they are failures
    more often than the known ones (`hides_failures`), so two equal sides seem to differ if only one
    of them lost scores.

    Args:
        prompts: Trials of the prompts that both sides played.
        unscored: See `PairedComparison`.
        unpaired: See `PairedComparison`.
        confidence: Of the intervals, in (0, 1).
    """
    tables = Counter(PromptTable.of(*each) for each in prompts)
    return replace(
        compare_tables(tables, unpaired=unpaired, confidence=confidence), unscored=unscored
    )


def compare_tables(
    tables: Mapping[PromptTable, int],
    *,
    unpaired: int = 0,
    confidence: float = 0.95,
    by_turn: float | None = None,
    sequential: bool = False,
) -> PairedComparison:
    """Compare two success rates as `compare_trials` does, from the tables of prompts.

    Args:
        tables: Number of prompts with each table, of the prompts that both sides played.
        unpaired: See `PairedComparison`.
        confidence: Of the intervals, in (0, 1).
        by_turn: Difference by the turns with a verdict; None: known outcomes are like unknown ones.
            It is shown within the values that the unknown outcomes allow.
        sequential: Whether a side stopped early because of its outcomes, so that the prompts depend
            on them. Then the differences at prompts are observations of a confidence sequence in
            the order of that side, and the p-value is ``1 / e`` of the wealth against no
            difference (Ville), both valid at every time. If both stopped, the order must be the
            same.
    """
    compare_known = _compare_at_any_time if sequential else _compare_known
    found = replace(
        compare_known(tables, confidence),
        unscored=sum(count * table.unscored for table, count in tables.items()),
        unpaired=unpaired,
    )
    missing = [
        _share_unknown([(getattr(table, side), count) for table, count in tables.items()])
        for side in ("a", "b")
    ]
    if not any(missing):
        return found
    lowest, highest = (
        compare_known(_with_imputed(tables, a=not won, b=won), confidence) for won in (True, False)
    )
    interval = hull(lowest.interval, highest.interval)
    if by_turn is not None:
        low, high = lowest.difference, highest.difference
        within = min(high, max(low, by_turn)) if math.isfinite(by_turn) else math.nan
        found = replace(found, difference=within)
    undecided = not found.prompts or lowest.difference <= 0 <= highest.difference
    return replace(
        found,
        interval=hull(interval, found.interval) if found.prompts else interval,
        p_value=math.nan if undecided else max(lowest.p_value, highest.p_value),
        bounds=Interval(lowest.difference, highest.difference),
        unscored_share=max(missing),
    )


def _with_imputed(tables: Mapping[PromptTable, int], *, a: bool, b: bool) -> Counter[PromptTable]:
    found: Counter[PromptTable] = Counter()
    for table, count in tables.items():
        found[table.imputed(a=a, b=b)] += count
    return found


def _share_unknown(sides: Iterable[tuple[tuple[int, int, int], int]]) -> float:
    unknown = made = 0
    for trials, count in sides:
        unknown += count * trials[2]
        made += count * sum(trials)
    return unknown / made if made else 0.0


def _compare_known(tables: Mapping[PromptTable, int], confidence: float) -> PairedComparison:
    known = {t: n for t, n in tables.items() if any(t.a[:2]) and any(t.b[:2])}
    pairs: Counter[PairCounts] = Counter()
    rates: Counter[tuple[int, int, int, int]] = Counter()
    for table, count in known.items():
        pairs[table.known] += count
        rates[table.a[0], sum(table.a[:2]), table.b[0], sum(table.b[:2])] += count
    matched = _compare_kinds(pairs, confidence)
    if all(sum(t.known) == sum(t.a[:2]) == sum(t.b[:2]) for t in known):
        return matched
    prompts = rates.total()
    leads: Counter[float] = Counter()
    for (a, of_a, b, of_b), count in rates.items():
        leads[a / of_a - b / of_b] += count
    if len(leads) < 2:
        # The spread over prompts is unknown: each prompt counts as one pair.
        shares = [(a / of_a, b / of_b, count) for (a, of_a, b, of_b), count in rates.items()]
        interval = newcombe_interval(
            _sum((a * b, count) for a, b, count in shares),
            _sum((a * (1 - b), count) for a, b, count in shares),
            _sum(((1 - a) * b, count) for a, b, count in shares),
            _sum(((1 - a) * (1 - b), count) for a, b, count in shares),
            confidence,
        )
    else:
        groups = Counter({(lead, 1.0): count for lead, count in leads.items()})
        interval = bootstrap_interval(groups, (-1.0, 1.0), confidence)
    return replace(
        matched,
        difference=_sum(leads.items()) / prompts,
        interval=interval,
        p_value=max(permutation_test(rates), sign_flip_test(_rate_leads(rates))),
        prompts=prompts,
    )


def _compare_at_any_time(tables: Mapping[PromptTable, int], confidence: float) -> PairedComparison:
    known = {t: n for t, n in tables.items() if any(t.a[:2]) and any(t.b[:2])}
    counts = PairCounts(*(sum(n * t.known[at] for t, n in known.items()) for at in range(4)))
    leads: Counter[float] = Counter()
    for table, count in known.items():
        rate_a, rate_b = (side[0] / sum(side[:2]) for side in (table.a, table.b))
        leads[rate_a - rate_b] += count
    if not leads:
        return PairedComparison(counts, math.nan, Interval(-1.0, 1.0), math.nan, 0, sequential=True)
    values = [(1 + lead) / 2 for lead, count in leads.items() for _ in range(count)]
    low, high = confidence_sequence(values, confidence)
    return PairedComparison(
        counts,
        difference=_sum(leads.items()) / leads.total(),
        interval=Interval(2 * low - 1, 2 * high - 1),
        p_value=math.exp(-max(0.0, log_e_value(values, 0.5))),
        prompts=leads.total(),
        sequential=True,
    )


def _sum(values: Iterable[tuple[float, int]]) -> float:
    """Return the sum of values that occur so many times, rounded once as by `math.fsum`."""
    return math.fsum(chain.from_iterable(repeat(value, count) for value, count in values))


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
    kinds = Counter(_counted(pairs) for pairs in prompts if pairs)
    return replace(_compare_kinds(kinds, confidence), unscored=unscored, unpaired=unpaired)


def _counted(pairs: Sequence[tuple[bool, bool]]) -> PairCounts:
    table = Counter(pairs)
    return PairCounts(
        table[True, True], table[True, False], table[False, True], table[False, False]
    )


def _compare_kinds(kinds: Mapping[PairCounts, int], confidence: float) -> PairedComparison:
    """Compare pairs of trials, given the number of prompts with each table of pairs."""
    kinds = {table: count for table, count in kinds.items() if any(table)}
    prompts = sum(kinds.values())
    counts = PairCounts(*(sum(n * t[at] for t, n in kinds.items()) for at in range(4)))
    pairs = sum(counts)
    groups: Counter[tuple[float, float]] = Counter()
    leads: Counter[int] = Counter()
    for table, count in kinds.items():
        groups[float(table.only_a - table.only_b), float(sum(table))] += count
        leads[table.only_a - table.only_b] += count
    interval = newcombe_interval(*counts, confidence)
    if pairs > prompts:  # as for one rate, see `clustered_interval`
        if prompts < 2 or len({lead / size for lead, size in groups}) < 2:
            scale = prompts / pairs
            both, only_a, only_b, neither = (scale * count for count in counts)
            wider = newcombe_interval(both, only_a, only_b, neither, confidence)
        else:
            wider = bootstrap_interval(groups, (-1.0, 1.0), confidence)
        interval = hull(interval, wider)
    return PairedComparison(
        counts=counts,
        difference=(counts.only_a - counts.only_b) / pairs if pairs else math.nan,
        interval=interval,
        p_value=sign_flip_test(leads) if pairs else math.nan,
        prompts=prompts,
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


def _rate_leads(tables: Counter[tuple[int, int, int, int]]) -> Counter[int]:
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
