"""Combinators of reward parts.

A missing part makes the reward missing, never zero. The only exception is a closed gate, whose
value does not depend on the part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from astra_rl.core.contracts import is_missing
from astra_rl.core.level import current_level
from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.rewards.base import (
    Reward,
    RewardModels,
    RewardPart,
    Values,
    check_names,
    evaluate_parts,
)


@named("product")
class Product(Reward):
    """The product of parts: no objective can be traded for another.

    A negative factor counts as 0, because the product of two would be positive. Beutel et al.
    (arXiv 2412.18693) multiply success, similarity to an example, diversity and length.

    Args:
        factors: The parts, at least one.

    Raises:
        ConfigurationError: There are no factors, or two terms have the same name.
    """

    def __init__(self, factors: Sequence[RewardPart]) -> None:
        if not factors:
            raise ConfigurationError("factors is empty; a product needs at least one.")
        self.factors = list(factors)
        check_names(self)

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The factors."""
        return self.factors

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the product of each turn, at least 0, and all parts by name."""
        columns, rows = evaluate_parts(self.factors, models, exchanges)
        return [
            math.prod(_at_least_zero(column[row]) for column in columns) for row in range(len(rows))
        ], rows


@named("gate")
class Gate(Reward):
    """The value of a part if a condition holds, else a constant.

    Args:
        part: Value while the gate is open.
        when: The part that the condition bounds. Where it is missing the value is missing.
        at_least: Lowest value of `when` at which the gate is open; None is no lower bound.
        at_most: Highest value of `when` at which the gate is open; None is no upper bound.
        otherwise: Value while the gate is closed, even if `part` is missing.

    Raises:
        ConfigurationError: No bound is given, or two terms have the same name.
    """

    def __init__(
        self,
        part: RewardPart,
        when: RewardPart,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        otherwise: float = 0.0,
    ) -> None:
        if at_least is None and at_most is None:
            raise ConfigurationError("a gate needs a bound: give at_least, at_most or both.")
        self.part = part
        self.when = when
        self.low = -math.inf if at_least is None else at_least
        self.high = math.inf if at_most is None else at_most
        self.otherwise = otherwise
        check_names(self)

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The part and the condition."""
        return [self.part, self.when]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the value of each turn, and all parts by name."""
        (values, when), rows = evaluate_parts(self.parts, models, exchanges)
        return [self._pass(*each) for each in zip(values, when, strict=True)], rows

    def _pass(self, value: float, when: float) -> float:
        if is_missing(when):
            return math.nan
        return value if self.low <= when <= self.high else self.otherwise


class Mapped(Reward):
    """A function of one part.

    Args:
        part: The part.
        function: Applied to each value that is not missing.
    """

    def __init__(self, part: RewardPart, function: Callable[[float], float]) -> None:
        self.part = part
        self.function = function

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The part."""
        return [self.part]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the mapped value of each turn, and the part."""
        values, rows = self.part.evaluate(models, exchanges)
        return [math.nan if is_missing(value) else self.function(value) for value in values], rows


@named("threshold")
def threshold(part: RewardPart, at_least: float = 0.5) -> Reward:
    """Return a reward that is 1 where a part is at least `at_least`, else 0."""
    return Mapped(part, lambda value: float(value >= at_least))


@named("clip")
def clip(part: RewardPart, low: float = -math.inf, high: float = math.inf) -> Reward:
    """Return a reward that clips a part to [low, high].

    Raises:
        ConfigurationError: `low` is above `high`.
    """
    if not low <= high:
        raise ConfigurationError(f"low={low} and high={high}; low must not be above high.")
    return Mapped(part, lambda value: min(high, max(low, value)))


@named("affine")
def affine(part: RewardPart, scale: float = 1.0, offset: float = 0.0) -> Reward:
    """Return the reward ``scale * part + offset``."""
    return Mapped(part, lambda value: scale * value + offset)


@named("sigmoid")
def sigmoid(part: RewardPart, slope: float = 10.0, center: float = 0.5) -> Reward:
    """Return the reward ``1 / (1 + exp(-slope * (part - center)))``, a soft threshold."""
    return Mapped(part, lambda value: logistic(slope * (value - center)))


@named("rank")
class Rank(Reward):
    """The rank of a part among siblings, from 0 (lowest) to 1 (highest).

    Ties share their mean rank, and a turn without siblings gets 0.5. Ranks do not depend on the
    scale of a part and limit the effect of outliers (Jailbreak-R1, arXiv 2506.00782). A missing
    value has no rank and is left out of the ranks of others.

    Args:
        part: The part.
    """

    def __init__(self, part: RewardPart) -> None:
        self.part = part

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The part."""
        return [self.part]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the rank of each turn, and the part."""
        values, rows = self.part.evaluate(models, exchanges)
        ranked = [math.nan] * len(values)
        for group in current_level([each.context for each in exchanges]).groups():
            for row, rank in zip(group, ranks([values[row] for row in group]), strict=True):
                ranked[row] = rank
        return ranked, rows


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 0 to 1; ties share their mean, NaN stays NaN."""
    present = [value for value in values if not is_missing(value)]
    if len(present) == 1:
        return [math.nan if is_missing(value) else 0.5 for value in values]
    return [
        math.nan
        if is_missing(value)
        else (
            sum(other < value for other in present)
            + (sum(other == value for other in present) - 1) / 2
        )
        / (len(present) - 1)
        for value in values
    ]


def logistic(x: float) -> float:
    """Return ``1 / (1 + exp(-x))`` without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _at_least_zero(value: float) -> float:
    return value if is_missing(value) else max(0.0, value)
