"""Combinators that adapt: what they do to a part depends on what it was in past experiences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from astra_rl.core.contracts import is_missing, mean_of_present
from astra_rl.core.graph import Graph
from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError
from astra_rl.rewards.base import (
    Reward,
    RewardModels,
    RewardPart,
    State,
    Values,
    check_names,
    evaluate_parts,
    observed_values,
)
from astra_rl.rewards.combine import logistic


class Standardized(Reward):
    """How far a part lies from its recent mean, squashed into (0, 1): 0.5 is the mean.

    ``sigmoid((part - mean) / (deviation + epsilon))`` with running averages over past training
    experiences (Beutel et al., arXiv 2412.18693, who take those of the batch: then a reward depends
    on what else is in it). Before the first experience mean and deviation are 0 and 1.

    Args:
        part: The part; it must have a name, by which it is found in the record.
        epsilon: Added to the deviation.
        decay: Of the running averages, in [0, 1); 0 takes those of the experience before.

    Raises:
        ConfigurationError: A value is out of range, or the part has no name.
    """

    def __init__(self, part: RewardPart, *, epsilon: float = 0.1, decay: float = 0.9) -> None:
        if not epsilon > 0:
            raise ConfigurationError(f"epsilon={epsilon}; it must be positive.")
        if not 0 <= decay < 1:
            raise ConfigurationError(f"decay={decay}; it must be in [0, 1).")
        self.part = part
        self.part_name = name_of(part)
        self.epsilon = epsilon
        self.decay = decay
        self._mean: float | None = None
        self._variance = 1.0

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The part."""
        return [self.part]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return where each turn's value lies, in (0, 1), and the part."""
        values, rows = self.part.evaluate(models, exchanges)
        mean, scale = self._mean or 0.0, math.sqrt(self._variance) + self.epsilon
        return [
            math.nan if is_missing(value) else logistic((value - mean) / scale) for value in values
        ], rows

    def observe(self, models: RewardModels, graphs: Sequence[Graph[str, str]]) -> None:
        """Move the averages towards those of this experience."""
        values = observed_values(graphs, self.part_name)
        if not values:
            return
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
        keep = 0.0 if self._mean is None else self.decay
        self._mean = keep * (self._mean or 0.0) + (1 - keep) * mean
        self._variance = keep * self._variance + (1 - keep) * variance

    def state_dict(self) -> State:
        """Return the averages."""
        return {"mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state: State) -> None:
        """Take the averages back."""
        self._mean, self._variance = state["mean"], state["variance"]


@dataclass(frozen=True)
class Limit:
    """What the mean of a part must keep to.

    Attributes:
        part: The part; it must have a name, by which it is found in the record.
        at_least: Lower bound of the mean.
        at_most: Upper bound of the mean; exactly one of the two must be given.
    """

    part: RewardPart
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        name_of(self.part)
        if (self.at_least is None) == (self.at_most is None):
            raise ConfigurationError("a limit needs one bound: give either at_least or at_most.")

    @property
    def name(self) -> str:
        """Name of the part."""
        return name_of(self.part)

    def excess(self, value: float) -> float:
        """Return by how much a value breaks the limit; negative where it keeps to it."""
        if self.at_least is not None:
            return self.at_least - value
        return value - (self.at_most or 0.0)


class Constrained(Reward):
    """A reward under constraints on the means of other parts, by Lagrange multipliers.

    ``(reward - sum_i m_i * excess_i) / (1 + sum_i m_i)``, where a multiplier ``m = exp(u)`` grows
    while the mean of its part breaks the limit and shrinks while it keeps to it: after each
    experience ``u`` takes a step of gradient ascent with momentum on ``mean excess * exp(u)``
    (DiveR-CT, arXiv 2405.19026, which maximises diversity under a constraint on harm). Multipliers
    are recorded as ``multiplier_`` and the part's name.

    Args:
        part: What is maximised.
        limits: What must be kept to.
        lr: Step size of the multipliers.
        momentum: Of their ascent.
        initial: Their value at the start.
        maximum: Their highest value.

    Raises:
        ConfigurationError: No limits, a value out of range, or two terms of the same name.
    """

    def __init__(
        self,
        part: RewardPart,
        limits: Sequence[Limit],
        *,
        lr: float = 0.2,
        momentum: float = 0.1,
        initial: float = 1.0,
        maximum: float = 10.0,
    ) -> None:
        if not limits:
            raise ConfigurationError("a constraint needs at least one limit.")
        if not (lr > 0 and 0 <= momentum < 1 and 0 < initial <= maximum):
            raise ConfigurationError(
                f"lr={lr}, momentum={momentum}, initial={initial}, maximum={maximum}; lr and "
                "initial must be positive, momentum in [0, 1), and initial at most maximum."
            )
        self.part = part
        self.limits = list(limits)
        self.lr = lr
        self.momentum = momentum
        self.maximum = maximum
        self._logs = [math.log(initial)] * len(limits)
        self._velocities = [0.0] * len(limits)
        check_names(self)

    @property
    def parts(self) -> Sequence[RewardPart]:
        """What is maximised, and what is limited."""
        return [self.part, *(limit.part for limit in self.limits)]

    @property
    def multipliers(self) -> list[float]:
        """The Lagrange multipliers, one per limit."""
        return [math.exp(log) for log in self._logs]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return each turn's reward after what breaking the limits costs, and all parts."""
        (rewards, *limited), rows = evaluate_parts(self.parts, models, exchanges)
        multipliers = self.multipliers
        for row in rows:
            for limit, multiplier in zip(self.limits, multipliers, strict=True):
                row[f"multiplier_{limit.name}"] = multiplier
        costs = [
            [multiplier * limit.excess(value) for value in column]
            for limit, multiplier, column in zip(self.limits, multipliers, limited, strict=True)
        ]
        return [
            (reward - sum(cost[row] for cost in costs)) / (1 + sum(multipliers))
            for row, reward in enumerate(rewards)
        ], rows

    def observe(self, models: RewardModels, graphs: Sequence[Graph[str, str]]) -> None:
        """Move the multipliers by how far the means of this experience are off their limits."""
        for index, limit in enumerate(self.limits):
            excess = limit.excess(mean_of_present(observed_values(graphs, limit.name)))
            if is_missing(excess):
                continue
            slope = excess * math.exp(self._logs[index])
            self._velocities[index] = self.momentum * self._velocities[index] + slope
            moved = self._logs[index] + self.lr * self._velocities[index]
            self._logs[index] = min(math.log(self.maximum), moved)

    def state_dict(self) -> State:
        """Return the multipliers' logarithms and velocities."""
        return {"logs": list(self._logs), "velocities": list(self._velocities)}

    def load_state_dict(self, state: State) -> None:
        """Take the multipliers back."""
        self._logs, self._velocities = list(state["logs"]), list(state["velocities"])


def name_of(part: RewardPart) -> str:
    """Return the name of a part that must have one.

    Raises:
        ConfigurationError: It has none.
    """
    if part.name is None:
        raise ConfigurationError(
            f"{type(part).__name__} has no name by which it could be found in the record; "
            "set its name."
        )
    return part.name
