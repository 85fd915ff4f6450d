"""Parse and check conditions of ``--fail-on``, such as ``asr > 0.05``.

```
condition = value ( "<" | "<=" | ">" | ">=" ) number
value     = [ bound "(" ] quantity [ ")" ]
bound     = "lower" | "upper"       ends of the 95% interval, which also covers all values of the
                                    unscored attempts; without a bound, the estimate
          | "lowest" | "highest"    the rate if none, or all, of the unscored attempts succeeded,
                                    without sampling error
quantity  = "asr"                   attack success rate: success in any turn
          | "asr_corrected"         attack success rate corrected for the errors of the judge, if
                                    it is calibrated
          | "asr_last_turn"         success in the last turn
          | "asr@" k                share of prompts with a success in k attempts
          | "success" | "failure" | "refused" | "blocked" | "error" | "unscored"
                                    share of the planned attempts with this outcome
          | "difference"            of a comparison: ASR of A minus ASR of B
          | "probability"           of failure in ordinary use
number    = decimal in [0, 1], or a percentage such as 5%; a difference may be negative
```

Spaces are ignored. If the condition holds, the build fails. A condition that is checked on several
results (targets, seeds, cells of a matrix) uses simultaneous intervals: 95% for all of them
together (Holm, see `check`). The estimate of a difference is undecided if the unscored attempts
could reverse it.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.evaluation.judges.quality import JudgedSummary
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.stats.importance import NoProbability, Probability
from astra_rl.evaluation.stats.intervals import Interval
from astra_rl.evaluation.stats.judge_errors import NotCorrected
from astra_rl.evaluation.stats.paired import PairedComparison
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.splitting import RareProbability

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_BOUNDS = ("lower", "upper", "lowest", "highest")
OF_A_SUMMARY = ("asr", "asr_last_turn", *(outcome.value for outcome in Outcome))
"""Quantities of a summary of attempts."""
CORRECTED = "asr_corrected"
OF_A_JUDGED_SUMMARY = (*OF_A_SUMMARY, CORRECTED)
"""Quantities of a summary whose judge may be calibrated."""
OF_A_COMPARISON = ("difference", "unscored")
"""Quantities of a paired comparison."""
OF_ORDINARY_USE = ("probability",)
"""Quantities of an estimate of the probability of failure."""

Evidence = (
    Summary | JudgedSummary | PairedComparison | Probability | NoProbability | RareProbability
)
"""Results that a condition can be checked on."""

_CONDITION = re.compile(
    r"(?:(?P<bound>[a-z]+)\()?(?P<quantity>[a-z_]+)(?:@(?P<k>[0-9]+))?(?P<close>\))?"
    r"(?P<comparison><=|>=|<|>)(?P<number>-?[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)(?P<percent>%)?"
)


@dataclass(frozen=True)
class Verdict:
    """Result of checking a condition.

    Attributes:
        fails: Whether the build fails: the condition holds, or its value is unknown.
        decided: Whether the value is known. An unknown value never counts as safe.
        text: The condition and the value, human-readable.
    """

    fails: bool
    decided: bool
    text: str


@dataclass(frozen=True)
class Condition:
    """A parsed condition; create it with `fail_on`.

    Attributes:
        expression: Source text.
        quantity: Name of the quantity.
        k: Number of attempts of ``asr@k``; otherwise None.
        bound: End of the interval or bounds; empty for the estimate.
        comparison: ``<``, ``<=``, ``>`` or ``>=``.
        limit: Right-hand side.
    """

    expression: str
    quantity: str
    k: int | None
    bound: str
    comparison: str
    limit: float

    def __call__(self, evidence: Evidence, results: int = 1) -> Verdict:
        """Check the condition on a result that has the quantity.

        Args:
            evidence: The result.
            results: Number of results that it is checked on; their intervals are simultaneous.
        """
        value = self._value(evidence, 1 - 0.05 / results)
        if math.isnan(value):
            return Verdict(True, False, f"{self.expression}: undecided, {_why_unknown(evidence)}")
        compared = _COMPARISONS[self.comparison]
        holds = compared(value, self.limit)
        if any(compared(each, self.limit) != holds for each in self._possible(evidence)):
            return Verdict(
                True,
                False,
                f"{self.expression}: undecided, it is {value:.4g} without the unscored attempts "
                "and they could change the answer",
            )
        said = "holds" if holds else "does not hold"
        simultaneous = (
            f" (95% interval for {results} results together)"
            if results > 1 and self.bound in ("lower", "upper")
            else ""
        )
        return Verdict(holds, True, f"{self.expression}: {said}, it is {value:.4g}{simultaneous}")

    @property
    def proves_by_holding(self) -> bool:
        """Whether the bound proves something where the condition holds, or where it does not."""
        return (self.bound == "lower") == (self.comparison in (">", ">="))

    def _possible(self, evidence: Evidence) -> tuple[float, ...]:
        """Return the extreme estimates of a difference, given its unscored attempts."""
        if (
            self.bound
            or self.quantity != "difference"
            or not isinstance(evidence, PairedComparison)
        ):
            return ()
        return evidence.bounds or ()

    def _value(self, evidence: Evidence, confidence: float) -> float:
        estimate, interval, bounds = self._numbers(evidence, confidence)
        if isinstance(evidence, NoProbability) and self.bound and evidence.evidence.plain.trials:
            return interval.low if self.bound == "lower" else interval.high
        if not self.bound or math.isnan(estimate):
            return estimate
        ends = bounds if self.bound in ("lowest", "highest") else interval
        return ends.low if self.bound in ("lower", "lowest") else ends.high

    def _numbers(self, evidence: Evidence, confidence: float) -> tuple[float, Interval, Interval]:
        """Return estimate, interval, and bounds (the interval where there are no bounds)."""
        if isinstance(evidence, JudgedSummary) and self.quantity == CORRECTED:
            corrected = evidence.corrected(confidence)
            if isinstance(corrected, NotCorrected):
                nothing = Interval(math.nan, math.nan)
                return math.nan, nothing, nothing
            return corrected.estimate, corrected.interval, corrected.interval
        if isinstance(evidence, JudgedSummary):
            evidence = evidence.summary
        if isinstance(evidence, PairedComparison):
            if self.quantity == "unscored":
                share = evidence.unscored_share
                return share, Interval(share, share), Interval(share, share)
            return evidence.difference, evidence.interval, evidence.bounds or evidence.interval
        if isinstance(evidence, Probability):
            return evidence.estimate, evidence.interval, evidence.interval
        if isinstance(evidence, RareProbability):
            return evidence.estimate, evidence.interval, evidence.interval
        if isinstance(evidence, NoProbability):
            return math.nan, evidence.interval, evidence.interval
        if self.k is not None:
            covering = evidence.at_k_covering(self.k, confidence)
            return evidence.at_k(self.k, confidence).estimate, covering, covering
        rate = self._rate(evidence)
        return rate.estimate, rate.covering(confidence), rate.bounds

    def _rate(self, summary: Summary) -> Rate:
        if self.quantity == "asr":
            return summary.asr
        if self.quantity == "asr_last_turn":
            return summary.asr_last_turn
        return summary.share(Outcome(self.quantity))


def _why_unknown(evidence: Evidence) -> str:
    """Return why a value is unknown."""
    if isinstance(evidence, JudgedSummary):
        corrected = evidence.corrected()
        if isinstance(corrected, NotCorrected):
            return corrected.text
    return "the value is unknown"


def check(conditions: Sequence[Condition], evidence: Sequence[Evidence]) -> list[Verdict]:
    """Check conditions on one or more results.

    A bound proves a statement: ``lower(asr)>0.05`` that a rate is above 5%, ``upper(asr)>0.05``,
    where it does not hold, that it is at most 5%. With several results, at most 5% of the families
    have a false proof (Holm, *Scand. J. Stat.* 6, 1979): of m results the first proofs need a
    confidence of ``1 - 0.05 / m``, and where r are proven the next need ``1 - 0.05 / (m - r)``.
    """
    return [verdict for each in conditions for verdict in _check_family(each, evidence)]


def _check_family(condition: Condition, evidence: Sequence[Evidence]) -> list[Verdict]:
    verdicts: dict[int, Verdict] = {}
    open_results = list(range(len(evidence)))
    while open_results:
        found = {index: condition(evidence[index], len(open_results)) for index in open_results}
        proven = [
            index
            for index, verdict in found.items()
            if verdict.decided and verdict.fails == condition.proves_by_holding
        ]
        verdicts |= found
        remaining = [index for index in open_results if index not in proven]
        if len(remaining) == len(open_results) or condition.bound not in ("lower", "upper"):
            break
        open_results = remaining
    return [verdicts[index] for index in range(len(evidence))]


def fail_on(expression: str, quantities: Sequence[str] = OF_A_SUMMARY) -> Condition:
    """Parse a condition such as ``"asr>0.05"`` or ``"upper(asr@5) >= 10%"``.

    The grammar is in the docstring of the module; nothing is evaluated as code.

    Args:
        expression: The condition.
        quantities: Quantities allowed for the result that will be checked.

    Raises:
        ConfigurationError: The expression is not a condition.
    """
    found = _CONDITION.fullmatch(re.sub(r"\s+", "", expression.lower()))
    if found is None or bool(found["bound"]) != bool(found["close"]):
        raise ConfigurationError(
            f"cannot read the condition {expression!r}. Write for instance {_example(quantities)}."
        )
    quantity, bound, k = found["quantity"], found["bound"] or "", found["k"]
    _check_known(expression, "quantity", quantity, quantities)
    if bound:
        _check_known(expression, "bound", bound, _BOUNDS)
    if bound in ("lowest", "highest") and quantity not in (*OF_A_SUMMARY, "difference"):
        raise ConfigurationError(f"{expression!r}: {quantity} has the bounds 'lower' and 'upper'.")
    if k is not None and (quantity != "asr" or int(k) < 1 or bound in ("lowest", "highest")):
        raise ConfigurationError(
            f"{expression!r}: '@' goes with asr and a number from 1, and has the bounds 'lower' "
            "and 'upper' only."
        )
    limit = float(found["number"]) / (100 if found["percent"] else 1)
    if not (-1 if quantity == "difference" else 0) <= limit <= 1:
        raise ConfigurationError(
            f"{expression!r}: the limit is {limit:g}; rates are from 0 to 1, or from 0% to 100%."
        )
    return Condition(
        expression=expression.strip(),
        quantity=quantity,
        k=None if k is None else int(k),
        bound=bound,
        comparison=found["comparison"],
        limit=limit,
    )


def _example(quantities: Sequence[str]) -> str:
    if "asr" in quantities:
        return "'asr>0.05', 'upper(asr)>5%' or 'asr@5>=0.1'"
    return f"'{quantities[0]}>0.05' or 'lower({quantities[0]})>0'"


def _check_known(expression: str, kind: str, name: str, known: Sequence[str]) -> None:
    if name == CORRECTED and name not in known:
        raise ConfigurationError(
            f"{expression!r}: unknown quantity {CORRECTED!r} here; evaluate, score, test, regress, "
            "transfer, seeds and replay of all attacks have it. The errors of a judge on attacks "
            f"that were selected by it are not those that were measured. Known: {', '.join(known)}."
        )
    if name not in known:
        raise ConfigurationError(
            f"{expression!r}: unknown {kind} {name!r}.{did_you_mean(name, known)} "
            f"Known: {', '.join(known)}."
        )
