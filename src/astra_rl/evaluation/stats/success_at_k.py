"""Repeated attempts at a prompt: success at k and queries to the first success."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.intervals import Interval, clustered_interval
from astra_rl.evaluation.stats.percent import between, format_percent
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.sequential import confidence_sequence


@dataclass(frozen=True)
class RateAtK:
    """ASR@k: probability that at least one of `k` attempts succeeds, averaged over prompts.

    Attributes:
        k: Number of attempts.
        estimate: In [0, 1]; NaN if no prompt has `k` known outcomes.
        interval: 95% interval.
        prompts: Number of prompts with at least `k` known outcomes; the estimate is their mean.
        left_out: Number of prompts with fewer.
    """

    k: int
    estimate: float
    interval: Interval
    prompts: int
    left_out: int

    @property
    def text(self) -> str:
        """The rate in words."""
        left_out = f", {self.left_out} tried too seldom" if self.left_out else ""
        return (
            f"one of {self.k} attempts succeeds at {format_percent(self.estimate)} of the prompts "
            f"(95% interval {between(self.interval)}, {self.prompts} prompts{left_out})"
        )


def success_at_k(successes: int, trials: int, k: int) -> float:
    """Unbiased estimate of the success probability of `k` trials: ``1 - C(n-c, k) / C(n, k)``.

    It is the share of subsets of `k` of the `n` trials that contain one of the `c` successes (Chen
    et al., arXiv 2107.03374, equation 1). The plug-in ``1 - (1 - c/n)**k`` is biased low.

    Returns:
        A number in [0, 1]; NaN with fewer than `k` trials.

    Raises:
        ConfigurationError: `k` is below 1.
    """
    if k < 1:
        raise ConfigurationError(f"k={k}; it must be at least 1.")
    if trials < k:
        return math.nan
    return 1 - math.comb(trials - successes, k) / math.comb(trials, k)


def rate_at_k(
    by_prompt: Sequence[tuple[int, int]],
    k: int,
    confidence: float = 0.95,
    *,
    sequential: bool = False,
) -> RateAtK:
    """Average `success_at_k` over the prompts that were tried at least `k` times.

    At k = 1 it is the success rate, averaged over prompts. With equally many trials per prompt its
    estimate and interval equal those of `Rate.of_prompts`.

    Args:
        by_prompt: Successes and known outcomes of each prompt.
        k: Number of attempts.
        confidence: Of the interval, in (0, 1).
        sequential: Whether the number of prompts depended on the outcomes: then the interval is a
            `confidence_sequence` over prompts.

    Raises:
        ConfigurationError: `k` is below 1.
    """
    values = [success_at_k(successes, trials, k) for successes, trials in by_prompt]
    known = [value for value in values if not math.isnan(value)]
    estimate = math.fsum(known) / len(known) if known else math.nan
    tried = [each for each in by_prompt if each[1] >= k]
    same_trials = len({trials for _, trials in tried}) == 1
    groups = tried if k == 1 and same_trials else [(value, 1) for value in known]
    interval = (
        confidence_sequence(known, confidence)
        if sequential
        else clustered_interval(groups, confidence)
    )
    return RateAtK(k, estimate, interval, len(known), len(values) - len(known))


@dataclass(frozen=True)
class QueriesToSuccess:
    """Target queries until the first success per prompt.

    Attributes:
        counts: Queries of each prompt with a success, up to and including the first failing one.
        censored: Queries of each prompt without a success.
    """

    counts: tuple[int, ...]
    censored: tuple[int, ...]

    @property
    def median(self) -> float:
        """Median over all prompts: the fewest queries within which at least half of them succeed.

        A median over prompts with a success alone would fall as fewer prompts succeed. A prompt
        without one counts as far as it was tried (product limit: Kaplan and Meier, *JASA* 53,
        1958). Infinite if more than half have no success, NaN without prompts.
        """
        if not self.counts and not self.censored:
            return math.nan
        half = Fraction(1, 2)
        return next((float(at) for at, without in self._without() if without <= half), math.inf)

    def _without(self) -> Iterator[tuple[int, Fraction]]:
        """Yield the share of prompts without a success after each number of queries that one had.

        It is the product limit: a prompt without a success counts as far as it was tried.
        """
        won, lost = Counter(self.counts), Counter(self.censored)
        without, running = Fraction(1), len(self.counts) + len(self.censored)
        for queries in sorted({*won, *lost}):
            without *= 1 - Fraction(won[queries], running)
            running -= won[queries] + lost[queries]
            yield queries, without

    @property
    def text(self) -> str:
        """The median and its number of prompts, as text."""
        median = self.median
        known = "no median of the" if math.isinf(median) else f"median {median:g}"
        return (
            f"{known} answers until the first failure; {len(self.censored)} of "
            f"{len(self.counts) + len(self.censored)} prompts without a failure (censored)"
        )

    def won_within(self, queries: int) -> Rate:
        """Share of prompts with a success within this number of queries.

        A prompt with fewer queries and no success is unscored: its outcome is unknown, while that
        of one with a success is known however few they were. So the estimate is the product limit,
        NaN if no prompt was tried so often, and the interval has all values of the unknown
        outcomes.
        """
        won = sum(count <= queries for count in self.counts)
        unknown = sum(count < queries for count in self.censored)
        without = [1.0, *(float(share) for at, share in self._without() if at <= queries)][-1]
        is_reached = not without or queries <= max((*self.counts, *self.censored), default=0)
        return Rate(
            won,
            len(self.counts) + len(self.censored) - unknown,
            unknown,
            selective=True,
            by_turn=1 - without if is_reached else math.nan,
        )
