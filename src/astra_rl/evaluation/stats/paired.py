"""Paired comparison of two success rates on the same prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

from astra_rl.evaluation.stats.intervals import Interval, bootstrap_interval, hull
from astra_rl.evaluation.stats.paired_tables import PairCounts, PromptTable, PromptTrials
from astra_rl.evaluation.stats.paired_tests import (
    mean_lead_test,
    newcombe_interval,
    permutation_test,
    rate_leads,
    sign_flip_test,
)
from astra_rl.evaluation.stats.sequential import confidence_sequence, log_e_value


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
        p_value=max(
            permutation_test(rates), sign_flip_test(rate_leads(rates)), mean_lead_test(leads)
        ),
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
    p_value = sign_flip_test(leads) if pairs else math.nan
    if pairs > prompts:  # as for one rate, see `clustered_interval`
        if prompts < 2 or len({lead / size for lead, size in groups}) < 2:
            scale = prompts / pairs
            both, only_a, only_b, neither = (scale * count for count in counts)
            wider = newcombe_interval(both, only_a, only_b, neither, confidence)
        else:
            wider = bootstrap_interval(groups, (-1.0, 1.0), confidence)
        interval = hull(interval, wider)
        rates: Counter[float] = Counter()
        for (lead, size), count in groups.items():
            rates[lead / size] += count
        p_value = max(p_value, mean_lead_test(rates))
    return PairedComparison(
        counts=counts,
        difference=(counts.only_a - counts.only_b) / pairs if pairs else math.nan,
        interval=interval,
        p_value=p_value,
        prompts=prompts,
    )
