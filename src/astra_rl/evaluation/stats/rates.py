"""Success rates: counts, estimate, interval and bounds of missing outcomes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from operator import itemgetter

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.intervals import (
    Interval,
    Method,
    NamedInterval,
    clustered_interval,
    named_clustered_interval,
    named_proportion_interval,
    proportion_interval,
)
from astra_rl.evaluation.stats.percent import between, format_percent
from astra_rl.evaluation.stats.sequential import confidence_sequence

_METHODS: dict[Method, str] = {
    "wilson": "Wilson",
    "clopper-pearson": "Clopper-Pearson",
    "wilson and clopper-pearson": "Wilson and Clopper-Pearson",
    "cluster bootstrap": "cluster bootstrap over prompts",
    "confidence sequence": "confidence sequence over prompts",
    "none": "no trials",
}


@dataclass(frozen=True)
class Rate:
    """A success rate.

    Attributes:
        successes: Number of successes.
        trials: Number of trials with a known outcome.
        unscored: Number of trials with an unknown outcome. They are not in the estimate; `bounds`
            covers all their possible outcomes.
        by_prompt: Successes and trials of each prompt; empty if every prompt has one trial.
        sequential: Whether the number of trials depended on their outcomes, so that the interval
            must hold at every time (`confidence_sequence`).
        selective: Whether unknown outcomes are not like the known ones, so that `interval` is
            `covering`. This is so in conversations of several turns, see `hides_failures`.
        by_turn: Estimate of a selective rate with unknown outcomes, from the turns with a verdict
            (`Courses.rate`); NaN: there is none.
        prompt_ids: Identifies each of `by_prompt`, to match those of other rates; empty if that is
            not known.
        unscored_by_prompt: Unscored trials of each of `by_prompt`, then of prompts without a known
            outcome. Those that are missing here are of a prompt each.

    Raises:
        ConfigurationError: A count is negative, there are more successes than trials, or the
            prompts do not add up.
    """

    successes: int
    trials: int
    unscored: int = 0
    by_prompt: tuple[tuple[int, int], ...] = ()
    sequential: bool = False
    selective: bool = False
    by_turn: float = math.nan
    prompt_ids: Sequence[Hashable] = field(default=(), compare=False, repr=False)
    unscored_by_prompt: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.trials or self.unscored < 0:
            raise ConfigurationError(
                f"successes={self.successes}, trials={self.trials}, unscored={self.unscored}; "
                "counts must not be negative, nor successes more than trials."
            )
        totals = tuple(sum(map(itemgetter(at), self.by_prompt)) for at in (0, 1))
        if self.by_prompt and totals != (self.successes, self.trials):
            raise ConfigurationError(
                f"the prompts have {totals} successes and trials, of which there are "
                f"{(self.successes, self.trials)}."
            )

    @classmethod
    def of_prompts(
        cls,
        by_prompt: Iterable[tuple[int, int]],
        unscored: int = 0,
        *,
        sequential: bool = False,
        selective: bool = False,
        by_turn: float = math.nan,
        prompt_ids: Sequence[Hashable] = (),
        unscored_by_prompt: Sequence[int] = (),
    ) -> Rate:
        """Build a rate from the successes and trials of each prompt, which may have none.

        `prompt_ids` and `unscored_by_prompt` are empty, or have a value for each of these prompts.
        """
        counts = list(by_prompt)
        known = tuple(each for each in counts if each[1])
        ids = prompt_ids
        if ids and len(known) < len(counts):
            ids = [name for name, each in zip(ids, counts, strict=True) if each[1]]
        unknown: tuple[int, ...] = ()
        if any(unscored_by_prompt):
            hidden = list(zip(counts, unscored_by_prompt, strict=True))
            unknown = tuple(number for each, number in hidden if each[1])
            unknown += tuple(number for each, number in hidden if number and not each[1])
        successes, trials = (sum(map(itemgetter(at), known)) for at in (0, 1))
        return cls(successes, trials, unscored, known, sequential, selective, by_turn, ids, unknown)

    @property
    def estimate(self) -> float:
        """Share of successes among the known outcomes; NaN without any.

        Of a selective rate with unknown outcomes that share is too high, so it is `by_turn`, within
        the `bounds`.
        """
        if self.is_by_turn:
            low, high = self.bounds
            return min(high, max(low, self.by_turn)) if math.isfinite(self.by_turn) else math.nan
        return self.known_share

    @property
    def is_by_turn(self) -> bool:
        """Whether the estimate is from turns, because known outcomes are not like unknown ones."""
        return self.selective and self.unscored > 0

    @property
    def known_share(self) -> float:
        """Share of successes among the known outcomes; NaN without any."""
        return self.successes / self.trials if self.trials else math.nan

    @cached_property
    def _named_interval(self) -> NamedInterval:
        if self.sequential and self.trials:
            return NamedInterval(confidence_sequence(self._by_time()), "confidence sequence")
        if self.by_prompt:
            return named_clustered_interval(self.by_prompt)
        return named_proportion_interval(self.successes, self.trials)

    @property
    def interval(self) -> Interval:
        """95% interval of the rate, over the choice of prompts and over sampling.

        Of a `selective` rate it also has all values of the unknown outcomes (`covering`).
        """
        return self._covering if self.selective else self._named_interval.interval

    @cached_property
    def _covering(self) -> Interval:
        return self.covering()

    @property
    def method(self) -> Method:
        """How the interval is computed: over prompts if one of them has several trials."""
        return self._named_interval.method

    @property
    def method_text(self) -> str:
        """The method as people write it."""
        unknown = ", any unknown outcomes" if self.selective and self.unscored else ""
        return _METHODS[self.method] + unknown

    @property
    def bounds(self) -> Interval:
        """The rate if all unscored trials were failures, and if all were successes."""
        total = self.trials + self.unscored
        if total == 0:
            return Interval(0.0, 1.0)
        return Interval(self.successes / total, (self.successes + self.unscored) / total)

    def _by_time(self) -> list[float]:
        """Return the success rate of each prompt, the observations of a sequence."""
        if not self.by_prompt:
            return [1.0] * self.successes + [0.0] * (self.trials - self.successes)
        return [successes / trials for successes, trials in self.by_prompt]

    def covering(self, confidence: float = 0.95) -> Interval:
        """Return the interval of the rate over all trials, known or not.

        Its ends are those of the intervals if all unknown outcomes were failures, and if all were
        successes, so they hold whatever makes outcomes unknown: how many are unknown varies from
        sample to sample, too. Without unknown outcomes it is `interval`.

        Args:
            confidence: In (0, 1).
        """
        if not self.trials:
            return Interval(0.0, 1.0)
        if self.sequential:  # each unknown outcome counts as a prompt of its own
            known_rates, unknown = self._by_time(), self.unscored
            return Interval(
                confidence_sequence(known_rates + [0.0] * unknown, confidence).low,
                confidence_sequence(known_rates + [1.0] * unknown, confidence).high,
            )
        lowest = self._imputed(0, confidence)
        return Interval(
            lowest.low, (self._imputed(1, confidence) if self.unscored else lowest).high
        )

    def _imputed(self, value: int, confidence: float) -> Interval:
        """Return the interval if all unknown outcomes were successes (1), or failures (0)."""
        if not self.by_prompt:
            won = self.successes + value * self.unscored
            return proportion_interval(won, self.trials + self.unscored, confidence)
        groups = zip_longest(self.by_prompt, self.unscored_by_prompt)
        counts = [
            (successes + value * (unknown or 0), trials + (unknown or 0))
            for (successes, trials), unknown in ((each or (0, 0), more) for each, more in groups)
        ]
        of_others = self.unscored - sum(self.unscored_by_prompt)
        return clustered_interval([*counts, *[(value, 1)] * of_others], confidence)

    @property
    def text(self) -> str:
        """The rate as a phrase, for instance ``67% (2 of 3), 95% interval 9% to 99%``."""
        hidden = f", {self.unscored} not known" if self.unscored else ""
        return (
            f"{format_percent(self.estimate)} ({self.counts_text}), "
            f"95% interval {between(self.interval)}{hidden}"
        )

    @property
    def counts_text(self) -> str:
        """The counts, for instance ``40 of 280``; says so if the estimate is not their ratio."""
        counts = f"{self.successes} of {self.trials}"
        return f"{counts} known, rate by turn" if self.is_by_turn else counts

    @property
    def bounds_text(self) -> str:
        """The bounds, and how the rate is estimated if not from the counts, as a sentence."""
        if self.unscored == 1:
            text = (
                f"1 outcome is not known: the rate is {between(self.bounds)} if it was a failure "
                "of the attack, or a success"
            )
        else:
            text = (
                f"{self.unscored} outcomes are not known: the rate is {between(self.bounds)} if "
                "all of them were failures of the attack, or successes"
            )
        return f"{text}; {self.estimator_text}" if self.is_by_turn else text

    @property
    def estimator_text(self) -> str:
        """How a rate by turn is estimated, or that it is not."""
        if math.isnan(self.estimate):
            return "it has no estimate, because of missing scores of turns"
        return (
            "it is estimated from the turns with a score (product limit), which assumes that "
            "scores are missing whatever the target answered"
        )

    def as_dict(self) -> dict[str, float | str]:
        """Return counts, estimate, interval (`low`, `high`) and bounds (`lowest`, `highest`)."""
        return {
            "successes": self.successes,
            "trials": self.trials,
            "unscored": self.unscored,
            "prompts": len(self.by_prompt) or self.trials,
            "estimate": self.estimate,
            "estimator": "product limit over turns" if self.is_by_turn else "share of known",
            "low": self.interval.low,
            "high": self.interval.high,
            "interval": self.method,
            "lowest": self.bounds.low,
            "highest": self.bounds.high,
        }


def describe_rate(rate: Rate) -> str:
    """Return for instance ``12% (6 of 50, 95% interval 5% to 24%, Clopper-Pearson)``."""
    if not rate.trials:
        return "not measured"
    return (
        f"{format_percent(rate.estimate)} ({rate.counts_text}, "
        f"95% interval {between(rate.interval)}, {rate.method_text})"
    )
