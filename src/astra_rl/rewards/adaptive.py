"""Adaptive combinators: standardization and constraints with state from past experiences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from astra_rl.core.contracts import is_missing, mean_of_present
from astra_rl.core.graph import Graph
from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
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


@named("standardized")
class Standardized(Reward):
    """A part standardized by its running mean and deviation, then squashed into (0, 1).

    ``sigmoid((part - mean) / (deviation + epsilon))`` with running averages over past training
    experiences; 0.5 is the mean. Beutel et al. (arXiv 2412.18693) use the statistics of the batch,
    which makes a reward depend on the rest of the batch. Before the first experience, mean and
    deviation are 0 and 1.

    Args:
        part: The part; it must have a name.
        epsilon: Added to the deviation, above 0.
        decay: Decay of the running averages, in [0, 1); 0 uses the last experience only.

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
        """Return the standardized value of each turn, in (0, 1), and the part."""
        values, rows = self.part.evaluate(models, exchanges)
        mean, scale = self._mean or 0.0, math.sqrt(self._variance) + self.epsilon
        return [
            math.nan if is_missing(value) else logistic((value - mean) / scale) for value in values
        ], rows

    def observe(self, models: RewardModels, graphs: Sequence[Graph[str, str]]) -> None:
        """Update the running averages."""
        values = observed_values(graphs, self.part_name)
        if not values:
            return
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
        keep = 0.0 if self._mean is None else self.decay
        self._mean = keep * (self._mean or 0.0) + (1 - keep) * mean
        self._variance = keep * self._variance + (1 - keep) * variance

    def state_dict(self) -> State:
        """Return the running averages."""
        return {"mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state: State) -> None:
        """Restore the running averages."""
        self._mean, self._variance = state["mean"], state["variance"]


@dataclass(frozen=True)
class Limit:
    """A bound on the mean of a part.

    Attributes:
        part: The part; it must have a name.
        at_least: Lower bound of the mean; give exactly one of the two bounds.
        at_most: Upper bound of the mean.
    """

    part: RewardPart
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        name_of(self.part)
        if (self.at_least is None) == (self.at_most is None):
            raise ConfigurationError(
                "a limit needs exactly one bound: give either at_least or at_most."
            )

    @property
    def name(self) -> str:
        """Name of the part."""
        return name_of(self.part)

    def excess(self, value: float) -> float:
        """Return by how much a value violates the limit; negative if it satisfies it."""
        if self.at_least is not None:
            return self.at_least - value
        return value - (self.at_most or 0.0)


@named("constraint")
class Constrained(Reward):
    """A reward under constraints on the means of other parts, by Lagrange multipliers.

    ``(reward - sum_i m_i * excess_i) / (1 + sum_i m_i)``, where a multiplier ``m = exp(u)`` grows
    while the mean of its part violates the limit and shrinks while it satisfies it: after each
    experience ``u`` takes a step of gradient ascent with momentum on ``mean excess * exp(u)``
    (DiveR-CT, arXiv 2405.19026, which maximizes diversity under a constraint on harm). Multipliers
    are recorded as ``multiplier_`` and the name of the part.

    Args:
        part: The part to maximize.
        limits: The constraints, at least one.
        lr: Step size of the gradient ascent, above 0.
        momentum: Momentum of the gradient ascent, in [0, 1).
        initial: Initial multiplier, above 0.
        maximum: Highest multiplier.
        minimum: Lowest multiplier; 0 is none. The steps are proportional to the multiplier, so one
            near zero takes very long to rise again.

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
        minimum: float = 0.1,
    ) -> None:
        if not limits:
            raise ConfigurationError("limits is empty; a constraint needs at least one.")
        if not (
            lr > 0 and 0 <= momentum < 1 and initial > 0 and 0 <= minimum <= initial <= maximum
        ):
            raise ConfigurationError(
                f"lr={lr}, momentum={momentum}, initial={initial}, maximum={maximum}, "
                f"minimum={minimum}; lr and initial must be positive, momentum in [0, 1), and "
                "initial between minimum and maximum."
            )
        self.part = part
        self.limits = list(limits)
        self.lr = lr
        self.momentum = momentum
        self.maximum = maximum
        self.minimum = minimum
        self._logs = [math.log(initial)] * len(limits)
        self._velocities = [0.0] * len(limits)
        check_names(self)

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The part to maximize and the limited parts."""
        return [self.part, *(limit.part for limit in self.limits)]

    @property
    def multipliers(self) -> list[float]:
        """The Lagrange multipliers, one per limit."""
        return [math.exp(log) for log in self._logs]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the constrained reward of each turn, and all parts and multipliers by name."""
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
        """Update the multipliers by the mean excesses of this experience."""
        for index, limit in enumerate(self.limits):
            excess = limit.excess(mean_of_present(observed_values(graphs, limit.name)))
            if is_missing(excess):
                continue
            slope = excess * math.exp(self._logs[index])
            self._velocities[index] = self.momentum * self._velocities[index] + slope
            moved = self._logs[index] + self.lr * self._velocities[index]
            low = math.log(self.minimum) if self.minimum else -math.inf
            self._logs[index] = min(math.log(self.maximum), max(low, moved))

    def state_dict(self) -> State:
        """Return the multipliers' logarithms and velocities."""
        return {"logs": list(self._logs), "velocities": list(self._velocities)}

    def load_state_dict(self, state: State) -> None:
        """Restore the multipliers."""
        self._logs, self._velocities = list(state["logs"]), list(state["velocities"])


def name_of(part: RewardPart) -> str:
    """Return the name of a part.

    Raises:
        ConfigurationError: It has no name.
    """
    if part.name is None:
        raise ConfigurationError(
            f"{type(part).__name__} has no name, by which its values are found in the record. "
            "Set its attribute name."
        )
    return part.name
