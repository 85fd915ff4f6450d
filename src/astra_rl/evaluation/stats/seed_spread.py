"""Variation of a rate between training seeds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_rl.evaluation.stats.intervals import (
    Interval,
    bootstrap_interval,
    clustered_interval,
    hull,
    proportion_interval,
    student_quantile,
)
from astra_rl.evaluation.stats.percent import format_percent
from astra_rl.evaluation.stats.rates import Rate


def mean_interval(values: Sequence[float], limits: tuple[float, float | None]) -> Interval | None:
    """Return the 95% interval of the mean over training seeds; None with fewer than three seeds.

    The smallest interval that contains two: the Student t interval of the values, cut at the
    limits, and the bootstrap over seeds with half a seed added at either limit
    (`bootstrap_interval`), which allows for collapsed seeds that a few seeds do not show. Without a
    highest possible value the largest one is taken; then equal values have no interval, because
    they do not show how far others may be (with Student's t alone five seeds, of which four in five
    collapse, cover 69%).

    Args:
        values: One value per seed.
        limits: Lowest and highest possible value; None is no limit.
    """
    if len(values) < 3:
        return None
    low, high = limits
    largest = max(values)
    if high is None and min(values) == largest:
        return None
    mean = math.fsum(values) / len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = student_quantile(0.95, len(values) - 1) * error
    between = Interval(
        max(low, mean - half), mean + half if high is None else min(high, mean + half)
    )
    ends = low, largest if high is None else high
    return hull(between, bootstrap_interval([(value, 1.0) for value in values], ends))


def counts_by_prompt(rates: Iterable[Rate]) -> dict[Hashable, tuple[int, int]]:
    """Return successes and trials of each prompt over all seeds; empty if a rate has no prompts.

    Without `Rate.prompt_ids` prompts in the same place are the same.
    """
    found: dict[Hashable, tuple[int, int]] = {}
    for rate in rates:
        if not rate.by_prompt:
            return {}
        ids = rate.prompt_ids or range(len(rate.by_prompt))
        for prompt, (successes, trials) in zip(ids, rate.by_prompt, strict=True):
            won, of = found.get(prompt, (0, 0))
            found[prompt] = won + successes, of + trials
    return found


def added_errors(a: Interval, b: Interval, centre: float, limits: Interval) -> Interval:
    """Return the interval of a mean that has two independent errors, from one interval of each.

    Its distances from the centre are the square roots of the sums of their squares (method of
    variance estimates recovery, Zou and Donner, *Stat. Med.* 27, 2008).
    """
    below = math.hypot(max(0.0, centre - a.low), max(0.0, centre - b.low))
    above = math.hypot(max(0.0, a.high - centre), max(0.0, b.high - centre))
    return Interval(max(limits.low, centre - below), min(limits.high, centre + above))


def unknown_reach(rates: Sequence[Rate]) -> Interval:
    """Return how far unknown outcomes of `selective` rates can move the mean of the known.

    (0, 0) without any.
    """
    shares = [
        (each.unscored / (each.trials + each.unscored), each.known_share)
        for each in rates
        if each.selective and each.unscored
    ]
    down = math.fsum(share * estimate for share, estimate in shares)
    up = math.fsum(share * (1 - estimate) for share, estimate in shares)
    return Interval(-down / len(rates), up / len(rates))


@dataclass(frozen=True)
class SeedSpread:
    """Variation of a success rate between training seeds.

    The interval of a rate covers other prompts and samples for one trained attacker; this covers
    other training runs. Report both for a method.

    Attributes:
        rates: Success rate by training seed.
    """

    rates: Mapping[int, Rate]

    @property
    def estimates(self) -> dict[int, float]:
        """Estimated rate by training seed."""
        return {seed: rate.estimate for seed, rate in self.rates.items()}

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        values = list(self.estimates.values())
        return math.fsum(values) / len(values) if values else math.nan

    @property
    def range(self) -> Interval | None:
        """Lowest and highest rate; None with fewer than two seeds."""
        values = list(self.estimates.values())
        if len(values) < 2:
            return None
        unknown = any(map(math.isnan, values))
        return Interval(math.nan, math.nan) if unknown else Interval(min(values), max(values))

    @property
    def interval(self) -> Interval | None:
        """95% interval of the mean over training seeds; None with fewer than three seeds.

        Error between seeds: the smallest interval that contains the Student t interval of the
        rates, and the bootstrap over seeds with half a seed added at 0% and at 100%
        (`bootstrap_interval`), which allows for collapsed seeds that a few seeds do not show.

        Error of the prompts: the seeds are evaluated on the same ones, so more seeds do not reduce
        it. It is the cluster bootstrap over prompts of the counts of all seeds together, and is
        added to that between seeds (`added_errors`). If the rates have no prompts it is the
        interval of all attempts together, and the result contains both.

        If a rate is `selective`, the interval has all values of the unknown outcomes, and so it has
        those of seeds without a known outcome, whose attackers may be unlike the others. It is
        never a point.
        """
        known = [rate for rate in self.rates.values() if rate.trials]
        values = [rate.known_share for rate in known]  # what is unknown is added at the end
        between = mean_interval(values, (0.0, 1.0))
        if between is None:
            return None
        mean = math.fsum(values) / len(values)
        prompts = counts_by_prompt(known)
        if prompts:
            of_prompts = clustered_interval(prompts.values())
            found = added_errors(between, of_prompts, mean, Interval(0.0, 1.0))
        else:
            trials = sum(rate.trials for rate in known)
            found = hull(between, proportion_interval(mean * trials, trials))
        down, up = unknown_reach(known)
        share = len(known) / len(self.rates)
        low, high = max(0.0, found.low + down), min(1.0, found.high + up)
        return Interval(share * low, share * high + 1 - share)

    @property
    def text(self) -> str:
        """Mean, range and interval as a sentence."""
        mean, seeds = format_percent(self.mean), len(self.estimates)
        if self.range is None:
            return f"{seeds} training seed: rate {mean}; variation between training runs unknown"
        said = (
            f"{seeds} training seeds: mean {mean}, from {format_percent(self.range.low)} to "
            f"{format_percent(self.range.high)}"
        )
        if self.interval is None:
            return f"{said}; two seeds give no interval"
        low, high = map(format_percent, self.interval)
        return f"{said}; 95% interval of the mean over seeds {low} to {high}"

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values; None where there are too few seeds."""
        return {
            "seeds": len(self.estimates),
            "estimates": {str(seed): value for seed, value in self.estimates.items()},
            "mean": self.mean,
            "range": None if self.range is None else list(self.range),
            "interval": None if self.interval is None else list(self.interval),
            "text": self.text,
        }
