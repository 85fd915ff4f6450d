"""A condition on a summary that fails a build: ``asr > 0.05``.

```
condition = value ( "<" | "<=" | ">" | ">=" ) number
value     = [ bound "(" ] quantity [ ")" ]
bound     = "lower" | "upper"       ends of the 95% interval; without one, the estimate
          | "lowest" | "highest"    the rate if all unscored attempts had failed, or succeeded
quantity  = "asr"                   conversations in which the target failed in any turn
          | "asr_last_turn"         ... in the last turn
          | "asr@" k                prompts at which one of k attempts succeeds
          | "success" | "failure" | "refused" | "blocked" | "error" | "unscored"
                                    share of the planned attempts with this outcome
number    = decimal in [0, 1], or a percentage such as 5%
```

Spaces do not matter. A condition *holds* when the build should fail.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.evaluation.attempts import Outcome
from astra_rl.evaluation.statistics import Rate, RateAtK
from astra_rl.evaluation.summary import Summary

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_BOUNDS = ("lower", "upper", "lowest", "highest")
_QUANTITIES = ("asr", "asr_last_turn", *(outcome.value for outcome in Outcome))
_CONDITION = re.compile(
    r"(?:(?P<bound>[a-z]+)\()?(?P<quantity>[a-z_]+)(?:@(?P<k>[0-9]+))?(?P<close>\))?"
    r"(?P<comparison><=|>=|<|>)(?P<number>[0-9]*\.?[0-9]+)(?P<percent>%)?"
)


@dataclass(frozen=True)
class Verdict:
    """Whether a condition holds.

    Attributes:
        fails: Whether the build should fail: the condition holds, or cannot be decided.
        decided: Whether the number exists. What could not be measured is never taken for safe.
        text: The condition and the number, for people.
    """

    fails: bool
    decided: bool
    text: str


@dataclass(frozen=True)
class Condition:
    """A parsed condition; make one with `fail_on`.

    Attributes:
        expression: As it was written.
        quantity: Which number.
        k: Attempts, of ``asr@k``.
        bound: Which end of an interval; empty for the estimate.
        comparison: How it is compared.
        limit: With what.
    """

    expression: str
    quantity: str
    k: int | None
    bound: str
    comparison: str
    limit: float

    def __call__(self, summary: Summary) -> Verdict:
        """Check the condition."""
        value = self._value(summary)
        if math.isnan(value):
            return Verdict(True, False, f"{self.expression}: undecided, there is no such number")
        holds = _COMPARISONS[self.comparison](value, self.limit)
        said = "holds" if holds else "does not hold"
        return Verdict(holds, True, f"{self.expression}: {said}, it is {value:.4g}")

    def _value(self, summary: Summary) -> float:
        rate = self._rate(summary)
        if not self.bound:
            return rate.estimate
        if math.isnan(rate.estimate):
            return math.nan
        if isinstance(rate, Rate) and self.bound in ("lowest", "highest"):
            return rate.bounds.low if self.bound == "lowest" else rate.bounds.high
        return rate.interval.low if self.bound == "lower" else rate.interval.high

    def _rate(self, summary: Summary) -> Rate | RateAtK:
        if self.k is not None:
            return summary.at_k(self.k)
        if self.quantity == "asr":
            return summary.asr
        if self.quantity == "asr_last_turn":
            return summary.asr_last_turn
        return summary.share(Outcome(self.quantity))


def fail_on(expression: str) -> Condition:
    """Parse a condition such as ``"asr>0.05"`` or ``"upper(asr@5) >= 10%"``.

    Nothing is evaluated as code. The grammar is that of this module.

    Raises:
        ConfigurationError: It is no condition; the message says where.
    """
    found = _CONDITION.fullmatch(re.sub(r"\s+", "", expression.lower()))
    if found is None or bool(found["bound"]) != bool(found["close"]):
        raise ConfigurationError(
            f"cannot read the condition {expression!r}. Write for instance 'asr>0.05', "
            "'upper(asr)>5%' or 'asr@5>=0.1'."
        )
    quantity, bound, k = found["quantity"], found["bound"] or "", found["k"]
    _check_known(expression, "quantity", quantity, _QUANTITIES)
    if bound:
        _check_known(expression, "bound", bound, _BOUNDS)
    if k is not None and (quantity != "asr" or int(k) < 1 or bound in ("lowest", "highest")):
        raise ConfigurationError(
            f"{expression!r}: '@' goes with asr and a number from 1, and has the bounds 'lower' "
            "and 'upper' only."
        )
    limit = float(found["number"]) / (100 if found["percent"] else 1)
    if not 0 <= limit <= 1:
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


def _check_known(expression: str, kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigurationError(
            f"{expression!r}: unknown {kind} {name!r}.{did_you_mean(name, known)} "
            f"Known: {', '.join(known)}."
        )
