"""The mathematics of rates: estimates with honest intervals. Pure functions of counts.

What is shown to people is put together from these functions by
`astra_rl.evaluation.measures.summary`, and nowhere else.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from astra_rl.errors import ConfigurationError

Array = NDArray[np.float64]

RESAMPLES = 2000
FEW = 22
"""Successes or failures up to which an end of `proportion_interval` is the exact one."""
_BOOTSTRAP_SEED = 0  # fixed: the same attempts always get the same interval


class Interval(NamedTuple):
    """A range of numbers, both ends included; unless said otherwise of probabilities."""

    low: float
    high: float


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a proportion.

    Unlike the textbook estimate plus or minus two standard errors it stays inside [0, 1] and keeps
    a width when nothing, or everything, succeeded (Wilson, JASA 22, 1927; recommended by Brown,
    Cai and DasGupta, *Statistical Science* 16, 2001). Trials must be independent: several
    generations for one prompt are not.

    Args:
        successes: At least 0, at most `trials`. Need not be whole: a mean of numbers in [0, 1]
            varies at most as much as a proportion with the same mean.
        trials: At least 0. No trials tell nothing: the interval is (0, 1).
        confidence: Between 0 and 1, both excluded.

    Raises:
        ConfigurationError: An argument is out of its range.
    """
    if not 0 <= successes <= trials:
        raise ConfigurationError(
            f"successes={successes}, trials={trials}; successes must be from 0 to trials."
        )
    if trials == 0:
        return Interval(0.0, 1.0)
    z = _quantile(confidence)
    # The upper end is the mirror image of the lower one, so swapping what counts as a success
    # mirrors the interval exactly.
    return Interval(
        _wilson_low(successes, trials, z), 1.0 - _wilson_low(trials - successes, trials, z)
    )


def _wilson_low(successes: float, trials: float, z: float) -> float:
    """Lower end, multiplied out so that nothing cancels: exactly 0 without successes."""
    spread = z * math.sqrt(successes * (trials - successes) / trials + z * z / 4)
    return successes * successes / trials / (successes + z * z / 2 + spread)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence={confidence}; it must be between 0 and 1.")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def proportion_interval(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval, its ends moved out to the exact ones where few decide them.

    Wilson's covers a 95% interval's 95% on average, but just beside the rates at which one success
    is expected in ten trials or fewer it covers 84% (Brown, Cai and DasGupta 2001, figure 5). Where
    at most `FEW` successes, or failures, stand behind an end it is that of Clopper and Pearson
    (*Biometrika* 26, 1934) if that is further out. So at 95% it covers at least 93%, whatever the
    rate and the number of trials; the tests enumerate it.

    Args:
        successes: See `wilson_interval`.
        trials: See `wilson_interval`.
        confidence: See `wilson_interval`.

    Raises:
        ConfigurationError: An argument is out of its range.
    """
    low, high = wilson_interval(successes, trials, confidence)
    won, lost = math.floor(successes), math.floor(trials - successes)
    whole = math.floor(trials)
    if 0 < won <= FEW:
        low = min(low, _exact_low(won, whole, confidence))
    if 0 < lost <= FEW:
        high = max(high, 1 - _exact_low(lost, whole, confidence))
    return Interval(low, high)


@functools.lru_cache(maxsize=4096)
def _exact_low(successes: int, trials: int, confidence: float) -> float:
    """Rate at which so many successes or more have half the probability that is left out."""
    tail = (1 - confidence) / 2
    counts = np.arange(successes)
    chosen = np.array([math.log(math.comb(trials, int(count))) for count in counts])
    low, high = 0.0, successes / trials
    for _ in range(60):
        middle = (low + high) / 2
        fewer = np.exp(
            chosen + counts * math.log(middle) + (trials - counts) * math.log1p(-middle)
        ).sum()
        low, high = (middle, high) if 1 - fewer < tail else (low, middle)
    return low


def clustered_interval(prompts: Iterable[tuple[float, int]], confidence: float = 0.95) -> Interval:
    """Return an interval of a rate whose trials come in groups: several of each prompt.

    Trials of one prompt are alike, so they tell less than as many trials of different prompts.
    Whole prompts are drawn again with replacement (`bootstrap_interval`), and the interval is
    widened to what the trials would give if they were independent. Where all trials agree nothing
    is known of how alike they are: then each prompt counts as one trial. So it is never a point.

    Args:
        prompts: Successes and trials of each prompt.
        confidence: Between 0 and 1, both excluded.

    Returns:
        The interval; (0, 1) without trials. The same input gives the same interval.
    """
    groups = [(float(successes), float(trials)) for successes, trials in prompts if trials]
    successes = math.fsum(each for each, _ in groups)
    trials = math.fsum(each for _, each in groups)
    if len(groups) < 2 or not 0 < successes < trials:
        share = successes / trials if trials else 0.0
        return proportion_interval(share * len(groups), len(groups), confidence)
    return hull(
        proportion_interval(successes, trials, confidence),
        bootstrap_interval(groups, (0.0, 1.0), confidence),
    )


def bootstrap_interval(
    groups: Sequence[tuple[float, float]],
    limits: tuple[float, float],
    confidence: float = 0.95,
) -> Interval:
    """Return an interval of a ratio of sums, drawing whole groups again.

    The interval runs between quantiles of the ratios of the redrawn groups (cluster bootstrap:
    Field and Welsh, *JRSS B* 69, 2007), a little further out than the nominal ones because few
    groups understate the spread (expanded percentile interval: Hesterberg, *The American
    Statistician* 69, 2015). Half a group at either limit is added before drawing, for the same
    reason for which Wilson's interval moves towards the middle: a rare success that sits in few
    groups would else be drawn too seldom. Without it the coverage falls to 88% where successes are
    rare and bunched; with it, it stays above 93% (see the simulation in the tests).

    Args:
        groups: Numerator and denominator of each group, at least two groups.
        limits: Lowest and highest ratio that a group can have.
        confidence: Between 0 and 1, both excluded.
    """
    count = len(groups)
    half = sum(size for _, size in groups) / count / 2
    # Groups of the same numbers are drawn together: a draw is a multinomial over the few kinds.
    # They are in order, so that the interval does not depend on the order of the groups.
    kinds = sorted(Counter([*groups, *((limit * half, half) for limit in limits)]).items())
    values = np.array([kind for kind, _ in kinds], dtype=np.float64)
    shares = np.array([size for _, size in kinds], dtype=np.float64) / (count + 2)
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    draws = generator.multinomial(count + 2, shares, size=RESAMPLES)
    ratios = (draws @ values[:, 0]) / (draws @ values[:, 1])
    expanded = math.sqrt(count / (count - 1)) * student_quantile(confidence, count - 1)
    tail = NormalDist().cdf(-expanded)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(float(low), float(high))


def hull(a: Interval, b: Interval) -> Interval:
    """Return the smallest interval that holds both."""
    return Interval(min(a.low, b.low), max(a.high, b.high))


def student_quantile(confidence: float, degrees: float) -> float:
    """Return the quantile of Student's t that leaves ``(1 - confidence) / 2`` above it.

    Exact for one and two degrees of freedom; from three on by the Cornish-Fisher expansion
    (Abramowitz and Stegun 26.7.5), right to 0.2% at 95%.
    """
    z = _quantile(confidence)
    if degrees < 2:
        return 1 / math.tan(math.pi * (1 - confidence) / 2)
    if degrees < 3:
        tail = 1 - confidence
        return math.sqrt(2 / (tail * (2 - tail)) - 2)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * degrees**4)
    )


@dataclass(frozen=True)
class Rate:
    """How often something happened.

    Attributes:
        successes: Trials in which it happened.
        trials: Trials whose outcome is known.
        unscored: Trials whose outcome could not be determined. They are neither successes nor
            failures: they are outside of the estimate, and `bounds` says how much they could hide.
        by_prompt: Successes and trials of each prompt. Empty means that no prompt was tried twice.

    Raises:
        ConfigurationError: A count is negative, there are more successes than trials, or the
            prompts do not add up.
    """

    successes: int
    trials: int
    unscored: int = 0
    by_prompt: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.trials or self.unscored < 0:
            raise ConfigurationError(
                f"successes={self.successes}, trials={self.trials}, unscored={self.unscored}; "
                "counts must not be negative, nor successes more than trials."
            )
        totals = tuple(sum(column) for column in zip(*self.by_prompt, strict=True))
        if self.by_prompt and totals != (self.successes, self.trials):
            raise ConfigurationError(
                f"the prompts have {totals} successes and trials, of which there are "
                f"{(self.successes, self.trials)}."
            )

    @classmethod
    def of_prompts(cls, by_prompt: Iterable[tuple[int, int]], unscored: int = 0) -> Rate:
        """Add up the successes and trials of each prompt."""
        known = tuple((successes, trials) for successes, trials in by_prompt if trials)
        return cls(sum(each[0] for each in known), sum(each[1] for each in known), unscored, known)

    @property
    def estimate(self) -> float:
        """Share of successes among the known outcomes; NaN when there are none."""
        return self.successes / self.trials if self.trials else math.nan

    @property
    def method(self) -> Literal["wilson", "cluster bootstrap"]:
        """How the interval is computed: by prompts if one was tried more than once."""
        repeated = any(trials > 1 for _, trials in self.by_prompt)
        return "cluster bootstrap" if repeated else "wilson"

    @cached_property
    def interval(self) -> Interval:
        """95% interval of the estimate: what other prompts and other generations might give."""
        if self.method == "wilson":
            return proportion_interval(self.successes, self.trials)
        return clustered_interval(self.by_prompt)

    @property
    def bounds(self) -> Interval:
        """The estimate if all unscored trials were failures, and if all were successes."""
        total = self.trials + self.unscored
        if total == 0:
            return Interval(0.0, 1.0)
        return Interval(self.successes / total, (self.successes + self.unscored) / total)

    @property
    def bounds_text(self) -> str:
        """The bounds in words."""
        return (
            f"{self.unscored} outcomes are not known: the rate is {between(self.bounds)} if all of "
            "them were failures of the attack, or successes"
        )

    def as_dict(self) -> dict[str, float | str]:
        """Return counts, estimate, interval (`low`, `high`) and bounds (`lowest`, `highest`)."""
        return {
            "successes": self.successes,
            "trials": self.trials,
            "unscored": self.unscored,
            "prompts": len(self.by_prompt) or self.trials,
            "estimate": self.estimate,
            "low": self.interval.low,
            "high": self.interval.high,
            "interval": self.method,
            "lowest": self.bounds.low,
            "highest": self.bounds.high,
        }


@dataclass(frozen=True)
class RateAtK:
    """How often at least one of `k` attempts at a prompt succeeds, averaged over prompts.

    Attributes:
        k: Attempts.
        estimate: NaN when no prompt was tried `k` times.
        interval: 95%, over prompts.
        prompts: Prompts with at least `k` known outcomes: those the estimate is of.
        left_out: Prompts with fewer.
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
    """Estimate without bias how likely one of `k` trials succeeds: ``1 - C(n-c, k) / C(n, k)``.

    The share of sets of `k` among the `n` trials that hold a success (Chen et al.,
    arXiv 2107.03374, equation 1). The plug-in ``1 - (1 - c/n)**k`` is too low.

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


def rate_at_k(by_prompt: Sequence[tuple[int, int]], k: int) -> RateAtK:
    """Average `success_at_k` over the prompts that were tried at least `k` times."""
    values = [success_at_k(successes, trials, k) for successes, trials in by_prompt]
    known = [value for value in values if not math.isnan(value)]
    estimate = math.fsum(known) / len(known) if known else math.nan
    interval = clustered_interval([(value, 1) for value in known])
    return RateAtK(k, estimate, interval, len(known), len(values) - len(known))


@dataclass(frozen=True)
class QueriesToSuccess:
    """How many answers of the target it took until it first failed at a prompt.

    Attributes:
        counts: For each prompt that was won, the answers up to and with the first failing one.
        censored: For each prompt that was never won, the answers that were spent on it.
    """

    counts: tuple[int, ...]
    censored: tuple[int, ...]

    @property
    def median(self) -> float:
        """Median over all prompts; infinite if half of them or more were never won.

        A median over the won prompts alone would look the better the fewer are won.
        """
        prompts = len(self.counts) + len(self.censored)
        at = (prompts - 1) // 2
        if not prompts:
            return math.nan
        return float(sorted(self.counts)[at]) if at < len(self.counts) else math.inf

    @property
    def text(self) -> str:
        """The median and how many prompts it is of, in words."""
        median = self.median
        known = "no median of the" if math.isinf(median) else f"median {median:g}"
        return (
            f"{known} answers until the first failure; {len(self.censored)} of "
            f"{len(self.counts) + len(self.censored)} prompts never won (censored)"
        )

    def won_within(self, queries: int) -> Rate:
        """Share of prompts won within so many answers.

        A prompt on which fewer were spent without success is unscored: nobody knows.
        """
        won = sum(count <= queries for count in self.counts)
        unknown = sum(count < queries for count in self.censored)
        return Rate(won, len(self.counts) + len(self.censored) - unknown, unknown)


@dataclass(frozen=True)
class SeedSpread:
    """How much a rate differs between attackers that were trained with different seeds.

    It is not the interval of a rate, which says what other prompts and generations might give for
    one attacker; a method is judged by both.

    Attributes:
        estimates: The rate of each training seed.
    """

    estimates: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        values = list(self.estimates.values())
        return math.fsum(values) / len(values) if values else math.nan

    @property
    def range(self) -> Interval | None:
        """Lowest and highest; None below two seeds, which say nothing of their spread."""
        values = list(self.estimates.values())
        return Interval(min(values), max(values)) if len(values) > 1 else None

    @property
    def interval(self) -> Interval | None:
        """95% interval of the mean over seeds, Student's t; None below three seeds.

        Wide with few seeds, as it should be. Cut off at 0 and 1.
        """
        values = list(self.estimates.values())
        if len(values) < 3:
            return None
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        half = student_quantile(0.95, len(values) - 1) * error
        return Interval(max(0.0, self.mean - half), min(1.0, self.mean + half))

    @property
    def text(self) -> str:
        """Mean, range and interval in words; of one seed that there is nothing to say."""
        mean, seeds = format_percent(self.mean), len(self.estimates)
        if self.range is None:
            return f"{seeds} training seed: no between-run uncertainty (rate {mean})"
        said = (
            f"{seeds} training seeds: mean {mean}, from {format_percent(self.range.low)} to "
            f"{format_percent(self.range.high)}"
        )
        if self.interval is None:
            return f"{said}; two seeds give no interval"
        low, high = map(format_percent, self.interval)
        return f"{said}; 95% interval of the mean over seeds {low} to {high}"

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers in JSON's types; None where so few seeds give none."""
        return {
            "seeds": len(self.estimates),
            "estimates": {str(seed): value for seed, value in self.estimates.items()},
            "mean": self.mean,
            "range": None if self.range is None else list(self.range),
            "interval": None if self.interval is None else list(self.interval),
            "text": self.text,
        }


def intervals_apart(a: Interval, b: Interval) -> bool:
    """Whether two intervals have no point in common.

    If they are apart, the rates differ. If they overlap, nothing follows: a paired comparison on
    the same prompts may still tell the rates apart.
    """
    return a.high < b.low or b.high < a.low


def format_percent(value: float) -> str:
    """Return a share as a whole percentage, with a decimal near 0 and 1; a dash when missing.

    Only exactly 0 and 1 are called 0% and 100%.
    """
    if not math.isfinite(value):
        return "\N{EM DASH}"
    if 0 < value < 0.01 or 0.99 < value < 1:
        return f"{min(max(value, 0.001), 0.999):.1%}"
    return f"{value:.0%}"


def between(interval: Interval) -> str:
    """Return an interval of shares, for instance ``6% to 24%``."""
    return f"{format_percent(interval.low)} to {format_percent(interval.high)}"


def describe_rate(rate: Rate) -> str:
    """Return for instance ``12% (6 of 50, 95% interval 6% to 24%, wilson)``."""
    if not rate.trials:
        return "not measured"
    return (
        f"{format_percent(rate.estimate)} ({rate.successes} of {rate.trials}, "
        f"95% interval {between(rate.interval)}, {rate.method})"
    )
