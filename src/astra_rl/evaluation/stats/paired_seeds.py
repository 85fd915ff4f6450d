"""Comparison of two methods that were trained with the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from astra_rl.evaluation.stats.intervals import (
    Interval,
    bootstrap_interval,
    hull,
    proportion_interval,
    student_quantile,
)
from astra_rl.evaluation.stats.percent import signed_percent
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.seed_spread import added_errors, counts_by_prompt, unknown_reach

MOST_EXACT = 16
"""Largest number of seeds for which all signs are enumerated."""


@dataclass(frozen=True)
class SeedPairs:
    """Difference of a rate between two methods, paired by training seed.

    A seed fixes what two trainings share: prompts and their order. Seeds are the unit: the number
    of prompts does not make the comparison more certain than the number of trainings.

    Attributes:
        rates: Rates of the first and the second method by seed, for the seeds of both.
    """

    rates: Mapping[int, tuple[Rate, Rate]]

    @property
    def differences(self) -> dict[int, float]:
        """Rate of the second minus that of the first, by seed; without seeds of unknown rate.

        NaN if a rate has known outcomes and no estimate, see `Rate.by_turn`.
        """
        known = {s: (a, b) for s, (a, b) in self.rates.items() if a.trials and b.trials}
        return {seed: b.estimate - a.estimate for seed, (a, b) in known.items()}

    @property
    def mean(self) -> float:
        """Mean difference; NaN without a seed."""
        values = list(self.differences.values())
        return math.fsum(values) / len(values) if values else math.nan

    @property
    def interval(self) -> Interval | None:
        """95% interval of the mean difference over training seeds; None with fewer than three.

        As for the mean of one method (`SeedSpread`): Student's t of the differences, and the
        bootstrap over seeds that allows for collapsed trainings. The error of the prompts, which
        all trainings share, is added: the bootstrap over prompts of the difference at each prompt.
        It contains the interval of the conversations of these trainings, and has all values of
        unknown outcomes of `selective` rates. It is never a point.
        """
        known = [self.rates[seed] for seed in self.differences]
        values = [b.known_share - a.known_share for a, b in known]
        if len(values) < 3:
            return None
        mean = math.fsum(values) / len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        half = student_quantile(0.95, len(values) - 1) * error
        between = Interval(max(-1.0, mean - half), min(1.0, mean + half))
        resampled = bootstrap_interval([(value, 1.0) for value in values], (-1.0, 1.0))
        found = hull(between, resampled)
        leads = self._leads()
        if len(leads) > 1:
            of_prompts = bootstrap_interval([(lead, 1.0) for lead in leads], (-1.0, 1.0))
            found = added_errors(found, of_prompts, mean, Interval(-1.0, 1.0))
        found, reach = hull(found, self._within()), self._reach()
        return Interval(max(-1.0, found.low + reach.low), min(1.0, found.high + reach.high))

    def _leads(self) -> list[float]:
        """Return the difference at each prompt, over all seeds; empty if it is not known."""
        known = [self.rates[seed] for seed in self.differences]
        a, b = (counts_by_prompt(pair[side] for pair in known) for side in (0, 1))
        return [b[each][0] / b[each][1] - a[each][0] / a[each][1] for each in a if each in b]

    def _reach(self) -> Interval:
        """Return how far unknown outcomes of `selective` rates can move the mean difference."""
        known = [self.rates[seed] for seed in self.differences]
        a, b = (unknown_reach([pair[side] for pair in known]) for side in (0, 1))
        return Interval(b.low - a.high, b.high - a.low)

    def _within(self) -> Interval:
        """Return the interval of two independent proportions (Newcombe 1998, 873, method 10)."""
        known = [self.rates[seed] for seed in self.differences]
        sides = []
        means = []
        for side in (0, 1):
            mean = math.fsum(pair[side].known_share for pair in known) / len(known)
            trials = sum(pair[side].trials for pair in known)
            low, high = proportion_interval(mean * trials, trials)
            sides.append((mean - low, high - mean))
            means.append(mean)
        (below_a, above_a), (below_b, above_b) = sides
        return Interval(
            max(-1.0, means[1] - means[0] - math.hypot(below_b, above_a)),
            min(1.0, means[1] - means[0] + math.hypot(above_b, below_a)),
        )

    @property
    def p_value(self) -> float | None:
        """Two-sided p-value of no difference: the exact sign-flip test over seeds (Fisher 1935).

        Under the hypothesis each difference has either sign with the same probability. Equal means
        are not enough: if one training in seven collapses, all differences of eight seeds have one
        sign in about 30% of the comparisons of equal methods. It is about these prompts. The
        smallest value that n seeds can give is 2 / 2^n, so fewer than six never reach 0.05. None
        without a seed, with more than `MOST_EXACT`, or if a rate is `selective` and has unknown
        outcomes, which could shift every difference in one direction.
        """
        values = list(self.differences.values())
        if not 1 <= len(values) <= MOST_EXACT or self._reach() != (0, 0):
            return None
        seen = abs(math.fsum(values))
        sums = (
            math.fsum(sign * value for sign, value in zip(signs, values, strict=True))
            for signs in product((1, -1), repeat=len(values))
        )
        reached = sum(abs(each) >= seen - 1e-12 for each in sums)
        return reached / float(2 ** len(values))

    @property
    def text(self) -> str:
        """The difference, its interval and the p-value as a sentence."""
        count = len(self.differences)
        if not count:
            return "no seed in common with a known rate"
        found = f"{count} seeds in common: difference {signed_percent(self.mean)}"
        if self.interval is None:
            return f"{found}; fewer than three seeds give no interval"
        low, high = self.interval
        said = f"{found}, 95% interval {low:+.1%} to {high:+.1%}"
        if self.p_value is None:
            return said
        said = f"{said}, p = {self.p_value:.3g} (sign flips)"
        if self.p_value > 0.05 or not low <= 0 <= high:
            return said
        return (
            f"{said}, which assumes that differences of either sign are equally likely; the "
            "interval, which allows for collapsed trainings, includes no difference"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "seeds": len(self.differences),
            "differences": {str(seed): value for seed, value in self.differences.items()},
            "mean": self.mean,
            "interval": None if self.interval is None else list(self.interval),
            "p_value": self.p_value,
            "text": self.text,
        }
