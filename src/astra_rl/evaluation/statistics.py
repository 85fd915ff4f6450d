"""Rates with honest intervals. Pure functions of counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from astra_rl.errors import ConfigurationError


class Interval(NamedTuple):
    """A range of probabilities, both ends included."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a proportion.

    Unlike the textbook estimate plus or minus two standard errors it stays inside [0, 1] and keeps
    a width when nothing, or everything, succeeded (Wilson, JASA 22, 1927; recommended by Brown,
    Cai and DasGupta, *Statistical Science* 16, 2001). Trials must be independent: several
    generations for one prompt are not.

    Args:
        successes: At least 0, at most `trials`.
        trials: At least 0. No trials tell nothing: the interval is (0, 1).
        confidence: Between 0 and 1, both excluded.

    Raises:
        ConfigurationError: An argument is out of its range.
    """
    if not 0 <= successes <= trials:
        raise ConfigurationError(
            f"successes={successes}, trials={trials}; successes must be from 0 to trials."
        )
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence={confidence}; it must be between 0 and 1.")
    if trials == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    # The upper end is the mirror image of the lower one, so swapping what counts as a success
    # mirrors the interval exactly.
    return Interval(
        _wilson_low(successes, trials, z), 1.0 - _wilson_low(trials - successes, trials, z)
    )


def _wilson_low(successes: int, trials: int, z: float) -> float:
    """Lower end, multiplied out so that nothing cancels: exactly 0 without successes."""
    spread = z * math.sqrt(successes * (trials - successes) / trials + z * z / 4)
    return successes * successes / trials / (successes + z * z / 2 + spread)


@dataclass(frozen=True)
class Rate:
    """How often something happened.

    Attributes:
        successes: Trials in which it happened.
        trials: Trials whose outcome is known.
        unscored: Trials whose outcome could not be determined. They are neither successes nor
            failures: they are outside of the estimate, and `bounds` says how much they could hide.

    Raises:
        ConfigurationError: A count is negative, or there are more successes than trials.
    """

    successes: int
    trials: int
    unscored: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.trials or self.unscored < 0:
            raise ConfigurationError(
                f"{self}; counts must not be negative, nor successes more than trials."
            )

    @property
    def estimate(self) -> float:
        """Share of successes among the known outcomes; NaN when there are none."""
        return self.successes / self.trials if self.trials else math.nan

    @property
    def interval(self) -> Interval:
        """95% Wilson interval of the estimate."""
        return wilson_interval(self.successes, self.trials)

    @property
    def bounds(self) -> Interval:
        """The estimate if all unscored trials were failures, and if all were successes."""
        total = self.trials + self.unscored
        if total == 0:
            return Interval(0.0, 1.0)
        return Interval(self.successes / total, (self.successes + self.unscored) / total)

    def as_dict(self) -> dict[str, float]:
        """Return counts, estimate, interval (`low`, `high`) and bounds (`lowest`, `highest`)."""
        return {
            "successes": self.successes,
            "trials": self.trials,
            "unscored": self.unscored,
            "estimate": self.estimate,
            "low": self.interval.low,
            "high": self.interval.high,
            "lowest": self.bounds.low,
            "highest": self.bounds.high,
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
