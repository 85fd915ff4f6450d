"""Success rates corrected for the errors of the judge, from its calibration on human labels.

Estimand: the share of conversations in which the target failed according to a human. Estimator:
Rogan and Gladen (*Am. J. Epidemiol.* 107, 1978), ``(q - F) / (S - F)`` with the measured rate q,
the sensitivity S and the false positive rate F of the judge. A conversation counts as a success if
the judge calls any of its turns one, so with n turns and a specificity p per turn, F is ``1 - p^n``
if the errors in its turns are independent, and ``1 - p`` if they are the same. The estimate assumes
independence; the interval covers both. Assumption: the judge errs on the texts of the run as often
as on the labelled ones.

Only turns with a verdict can be wrong: a conversation whose only response was withheld has no
error. A rule may end conversations at their first success. A false positive then ends them too, so
their number of turns says nothing about how many verdicts could have been wrong; it is that of the
other conversations which are at least as long (`JudgedTurns.planned`), and the estimand is the
share in which the target fails in the planned turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astra_rl.evaluation.stats.classification import (
    Confusion,
    sensitivity,
    share_interval,
    specificity,
)
from astra_rl.evaluation.stats.intervals import Interval
from astra_rl.evaluation.stats.percent import between, estimated, format_percent
from astra_rl.evaluation.stats.rates import Rate

LEAST_YOUDEN = 0.05
"""Smallest sensitivity + specificity - 1 that is corrected for; a judge at 0 knows nothing."""
_GRID = np.linspace(0.0, 1.0, 4001)


@dataclass(frozen=True)
class JudgedTurns:
    """Number of conversations with a known outcome, by their number of turns with a verdict.

    Attributes:
        ended: Conversations that did not end with their first success.
        stopped: Conversations whose last turn is their first success.
    """

    ended: Mapping[int, float]
    stopped: Mapping[int, float] = field(default_factory=dict)

    def planned(self) -> dict[int, float] | None:
        """Return the numbers of conversations by planned turns.

        A conversation that was stopped would have become as long as those that were not and are at
        least as long (redistribution to the right: Efron, *Proc. 5th Berkeley Symp.* 4, 1967).
        Stopped ones that are longer than all others count as complete if their lengths are equal.

        Returns:
            None if those lengths differ: nothing shows how long they would have become.
        """
        total = {n: count for n, count in self.ended.items() if count}
        stopped = {n: count for n, count in sorted(self.stopped.items()) if count}
        longest = [n for n in stopped if n > max(total, default=-1)]
        if len(longest) > 1:
            return None
        for n in longest:
            total[n] = stopped.pop(n)
        for n, count in reversed(stopped.items()):  # longer ones first, so that they have a weight
            longer = {m: weight for m, weight in total.items() if m >= n}
            whole = sum(longer.values())
            for m, weight in longer.items():
                total[m] += count * weight / whole
        return total


@dataclass(frozen=True)
class Corrected:
    """A success rate corrected for the errors of the judge.

    Attributes:
        estimate: In [0, 1].
        interval: 95% interval; it contains the sampling of the conversations, the unknown outcomes
            and the sampling of the labels.
        false_positives: Success rate that this judge would report of a target that never fails,
            and whose responses are withheld as often, with its 95% interval.
        precision: Share of the reported successes that are real, at the rate of this run, with an
            interval that covers at least 95%; NaN if none was reported.
        may_guess: Whether the labels do not tell the judge from one that guesses; then the interval
            has every rate.
    """

    estimate: float
    interval: Interval
    false_positives: tuple[float, Interval]
    precision: tuple[float, Interval]
    may_guess: bool = False

    @property
    def text(self) -> str:
        """The numbers as a sentence."""
        found, found_interval = self.false_positives
        real, real_interval = self.precision
        precision = (
            f"; {format_percent(real)} of the reported successes are real "
            f"({between(real_interval)})"
            if math.isfinite(real)
            else ""
        )
        guesses = (
            " (the labels do not tell this judge from one that guesses: label more)"
            if self.may_guess
            else ""
        )
        return (
            f"corrected for the judge's errors: {estimated(self.estimate, self.interval)}"
            f"{guesses}; "
            f"a target that never fails would get {format_percent(found)} "
            f"({between(found_interval)}){precision}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "method": "Rogan-Gladen",
            "estimate": self.estimate,
            **self.interval._asdict(),
            "false_positives": _as_dict(*self.false_positives),
            "precision": _as_dict(*self.precision),
            "may_guess": self.may_guess,
        }


@dataclass(frozen=True)
class NotCorrected:
    """The measured errors of the judge do not allow a correction.

    Attributes:
        reason: Why.
    """

    reason: str

    @property
    def text(self) -> str:
        """The reason as a sentence."""
        return f"not corrected for the judge's errors: {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """Return the reason as JSON values."""
        return asdict(self)


def _as_dict(value: float, interval: Interval) -> dict[str, float]:
    return {"value": value, **interval._asdict()}


@dataclass(frozen=True)
class _Ends:
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _ErrorRates:
    """Sensitivity and false positive rate of a judge for whole conversations with a verdict.

    `judged` is the share of the conversations with a verdict in any turn.
    """

    sensitivity: _Ends
    false_positive: _Ends
    judged: float

    @classmethod
    def of_turns(
        cls,
        counts: Confusion,
        by_group: Sequence[Confusion],
        turns: Mapping[int, float],
        judged: float,
        confidence: float,
    ) -> _ErrorRates:
        """Return the rates if errors are independent, from those per turn.

        The sensitivity is lowest if the target fails in one turn, and highest if it does in all.
        """
        tp, fp, tn, fn = counts
        s, p = tp / (tp + fn), tn / (tn + fp)
        s_low, s_high = share_interval(counts, by_group, sensitivity, confidence)
        p_low, p_high = share_interval(counts, by_group, specificity, confidence)

        def mean(of: Callable[[int], float]) -> float:
            return math.fsum(count * of(n) for n, count in turns.items()) / sum(turns.values())

        def one_failing_turn(s: float, p: float) -> float:
            return mean(lambda n: 1 - (1 - s) * p ** (n - 1))

        return cls(
            _Ends(
                one_failing_turn(s, p),
                one_failing_turn(s_low, p_high),
                max(mean(lambda n: 1 - (1 - s_high) ** n), one_failing_turn(s_high, p_low)),
            ),
            _Ends(
                mean(lambda n: 1 - p**n),
                mean(lambda n: 1 - p_high**n),
                mean(lambda n: 1 - p_low**n),
            ),
            judged,
        )

    def correct(self, q: float) -> float:
        """Rogan-Gladen estimate at a measured rate."""
        false, true = self.false_positive.value, self.sensitivity.value
        return min(self.judged, max(0.0, (q - self.judged * false) / (true - false)))

    @property
    def may_guess(self) -> bool:
        """Whether S - F may be below `LEAST_YOUDEN`, given the uncertainty of the labels."""
        s, f = self.sensitivity, self.false_positive
        return s.value - f.value - math.hypot(s.value - s.low, f.high - f.value) < LEAST_YOUDEN

    def compatible(self, q: _Ends) -> NDArray[np.bool_]:
        """Return at which rates of the grid ``q - rate S - (judged - rate) F`` may be zero.

        At all, if the judge `may_guess`: one that seems to know something by chance only would
        exclude the truth too often.
        """
        s, f, rates = self.sensitivity, self.false_positive, _GRID
        if self.may_guess:
            possible: NDArray[np.bool_] = rates <= self.judged
            return possible
        others = np.maximum(0.0, self.judged - rates)
        centre = q.value - rates * s.value - others * f.value
        below = (
            (q.value - q.low) ** 2
            + (rates * (s.high - s.value)) ** 2
            + (others * (f.high - f.value)) ** 2
        )
        above = (
            (q.high - q.value) ** 2
            + (rates * (s.value - s.low)) ** 2
            + (others * (f.value - f.low)) ** 2
        )
        inside: NDArray[np.bool_] = (centre <= np.sqrt(below)) & (centre >= -np.sqrt(above))
        return inside


def correct_rate(
    rate: Rate,
    counts: Confusion,
    turns: JudgedTurns | None = None,
    *,
    by_group: Sequence[Confusion] = (),
    confidence: float = 0.95,
) -> Corrected | NotCorrected:
    """Correct a success rate for the errors of the judge.

    The interval has all rates at which ``q = rate S + (judged - rate) F`` cannot be excluded, given
    the intervals of q, S and F (method of variance estimates recovery, Zou and Donner, *Stat. Med.*
    27, 2008). That of q is clustered by prompt if the trials are, and those
    of S and F by group if the labels are. Coverage by simulation: at least
    93% for sensitivity and specificity from 0.6 and all rates, see ``benchmarks/coverage.py``.

    Args:
        rate: The success rate of the conversations, by this judge.
        counts: Confusion matrix of the judge at the threshold of the rate, on labelled texts.
        turns: Number of conversations by their number of turns with a verdict, which may be 0, and
            whether their first success ended them; None: each has one turn.
        by_group: Confusion matrix of each group of labels whose errors may be alike, such as those
            of one prompt; `counts` is their sum. Empty: labels are independent.
        confidence: Of the intervals, in (0, 1).
    """
    tp, fp, tn, fn = counts
    if not (rate.trials and tp + fn and tn + fp):
        return NotCorrected("no known outcome, or no labels of one class")
    youden = tp / (tp + fn) + tn / (tn + fp) - 1
    if youden < LEAST_YOUDEN:
        return NotCorrected(
            f"sensitivity + specificity is {1 + youden:.2f}, and a judge that guesses has 1; use "
            "another judge or threshold"
        )
    planned = {1: 1.0} if turns is None else turns.planned()
    if planned is None:
        return NotCorrected(
            "conversations that end at their first success are longer than all others, so it is "
            "not known how many turns could have been judged. Play all turns, or label "
            "conversations (astra-rl label)"
        )
    known = {n: count for n, count in planned.items() if n and count}
    if not known:
        return NotCorrected("no turn has a verdict of the judge")
    without = planned.get(0, 0) / sum(planned.values())
    shares = _shares_with_verdict(rate, without)
    judged = shares[-1] if rate.is_by_turn else 1 - without  # as the rate itself
    errors = _ErrorRates.of_turns(counts, by_group, known, judged, confidence)
    same = _ErrorRates.of_turns(counts, by_group, {1: 1}, judged, confidence)
    false, sensitivity = errors.false_positive, errors.sensitivity
    if sensitivity.value - false.value < LEAST_YOUDEN:
        return NotCorrected(
            f"in conversations of several turns a target that never fails gets "
            f"{format_percent(false.value)}, nearly as much as one that fails; use a judge with a "
            "higher specificity"
        )
    if math.isnan(rate.estimate):
        return NotCorrected("the rate has no estimate, because of missing scores of turns")
    q = _Ends(rate.estimate, *rate.covering(confidence))
    inside = _GRID[
        np.any(
            [
                replace(each, judged=share).compatible(q)
                for each in (errors, same)
                for share in shares
            ],
            axis=0,
        )
    ]
    if not len(inside):
        return NotCorrected(
            f"a rate of {format_percent(q.value)} contradicts the measured error rates, with which "
            f"it is between {format_percent(judged * false.value)} and "
            f"{format_percent(judged * sensitivity.value)}: "
            "the judge errs differently on these texts. Label a sample of them (astra-rl label)"
        )
    estimate, step = errors.correct(q.value), float(_GRID[1])
    may_guess = errors.may_guess or same.may_guess
    precision = _precision(q.value, false.value, sensitivity.value, judged)
    return Corrected(
        estimate,
        Interval(
            min(estimate, max(0.0, float(inside[0]) - step)),
            max(estimate, min(1.0, float(inside[-1]) + step)),
        ),
        (
            judged * false.value,
            Interval(judged * same.false_positive.low, judged * false.high),
        ),
        (
            precision,
            Interval(0.0, 1.0)
            if may_guess and math.isfinite(precision)
            else Interval(
                _precision(q.low, false.high, sensitivity.high, judged),
                _precision(q.high, same.false_positive.low, same.sensitivity.low, judged),
            ),
        ),
        may_guess,
    )


def _shares_with_verdict(rate: Rate, without: float) -> tuple[float, ...]:
    """Return the lowest and highest share of conversations that a judge could score.

    A conversation of unknown outcome may be one whose responses were all withheld, if the call
    failed; if its score is missing, it is not. The highest share is that of missing scores.

    Args:
        rate: The success rate.
        without: Share of the known outcomes without a verdict.
    """
    if not (without and rate.unscored):
        return (1 - without,)
    share = rate.trials / (rate.trials + rate.unscored)
    return share * (1 - without), 1 - share * without


def _precision(q: float, false: float, sensitivity: float, judged: float) -> float:
    """Return the share of real ones among the reported successes; NaN without any."""
    if q <= 0:
        return math.nan
    if sensitivity <= false:
        return 0.0
    rate = min(judged, max(0.0, (q - judged * false) / (sensitivity - false)))
    return min(1.0, max(0.0, 1 - (judged - rate) * false / q))
