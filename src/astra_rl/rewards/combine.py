"""What makes one reward of several parts.

In all of them a missing part makes the reward missing, never zero; the one exception is a gate that
is known to be closed, behind which nothing matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from astra_rl.core.contracts import is_missing
from astra_rl.core.level import current_level
from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError
from astra_rl.rewards.base import (
    Reward,
    RewardModels,
    RewardPart,
    Values,
    check_names,
    evaluate_parts,
)


class Product(Reward):
    """The product of parts, so that no objective can be given up for another.

    A negative factor counts as 0: two of them must not make a gain (Beutel et al.,
    arXiv 2412.18693, multiply success, similarity to an example, diversity and length).

    Args:
        factors: The parts.

    Raises:
        ConfigurationError: There are none, or two terms have the same name.
    """

    def __init__(self, factors: Sequence[RewardPart]) -> None:
        if not factors:
            raise ConfigurationError("a product needs at least one factor.")
        self.factors = list(factors)
        check_names(self)

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The factors."""
        return self.factors

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return each turn's product, at least 0, and all parts."""
        columns, rows = evaluate_parts(self.factors, models, exchanges)
        return [
            math.prod(_at_least_zero(column[row]) for column in columns) for row in range(len(rows))
        ], rows


class Gate(Reward):
    """A part that counts only where a condition holds.

    Args:
        part: What is paid while the gate is open.
        when: The condition is a bound on this.
        at_least: Lowest value of `when` at which the gate is open; None sets no lower bound.
        at_most: Highest value of `when` at which the gate is open; None sets no upper bound.
        otherwise: What is paid while it is closed, even where `part` is missing. Where `when` is
            missing nobody knows, and the reward is missing.

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
        """What is paid, and the condition."""
        return [self.part, self.when]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return each turn's value behind the gate, and all parts."""
        (paid, when), rows = evaluate_parts(self.parts, models, exchanges)
        return [self._pass(*each) for each in zip(paid, when, strict=True)], rows

    def _pass(self, paid: float, when: float) -> float:
        if is_missing(when):
            return math.nan
        return paid if self.low <= when <= self.high else self.otherwise


class Mapped(Reward):
    """A function of one part.

    Args:
        part: The part.
        function: Applied to each value that is present.
    """

    def __init__(self, part: RewardPart, function: Callable[[float], float]) -> None:
        self.part = part
        self.function = function

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The part."""
        return [self.part]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the function of each turn's value, and the part."""
        values, rows = self.part.evaluate(models, exchanges)
        return [math.nan if is_missing(value) else self.function(value) for value in values], rows


def threshold(part: RewardPart, at_least: float = 0.5) -> Reward:
    """1 where a part reaches a value, else 0."""
    return Mapped(part, lambda value: float(value >= at_least))


def clip(part: RewardPart, low: float = -math.inf, high: float = math.inf) -> Reward:
    """A part, kept between two bounds.

    Raises:
        ConfigurationError: The bounds are in the wrong order.
    """
    if not low <= high:
        raise ConfigurationError(f"low={low} and high={high}; low must not be above high.")
    return Mapped(part, lambda value: min(high, max(low, value)))


def affine(part: RewardPart, scale: float = 1.0, offset: float = 0.0) -> Reward:
    """``scale * part + offset``."""
    return Mapped(part, lambda value: scale * value + offset)


def sigmoid(part: RewardPart, slope: float = 10.0, center: float = 0.5) -> Reward:
    """``1 / (1 + exp(-slope * (part - center)))``: a soft threshold."""
    return Mapped(part, lambda value: logistic(slope * (value - center)))


class Rank(Reward):
    """The rank of a part among siblings, from 0 (lowest) to 1 (highest).

    Ties share their mean rank, and a turn without siblings gets 0.5. Ranks do not depend on the
    scale of a part and bound what an outlier can earn (Jailbreak-R1, arXiv 2506.00782). A missing
    value has no rank and is no one's rival.

    Args:
        part: What is ranked.
    """

    def __init__(self, part: RewardPart) -> None:
        self.part = part

    @property
    def parts(self) -> Sequence[RewardPart]:
        """What is ranked."""
        return [self.part]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return each turn's rank, and the part."""
        values, rows = self.part.evaluate(models, exchanges)
        ranked = [math.nan] * len(values)
        for group in current_level([each.context for each in exchanges]).groups():
            for row, rank in zip(group, ranks([values[row] for row in group]), strict=True):
                ranked[row] = rank
        return ranked, rows


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 0 to 1; ties share their mean, NaN keeps none."""
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
    """``1 / (1 + exp(-x))`` without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _at_least_zero(value: float) -> float:
    return value if is_missing(value) else max(0.0, value)
