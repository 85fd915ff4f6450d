"""What a reward is made of.

A *term* looks at the turns of one tree level, all episodes together, and gives one number per turn.
A reward weighs terms and keeps each by name for the record. Adding a term is a class with a name
and one method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from astra_rl.core.contracts import check_length
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError


class RewardModels(Protocol):
    """What a term may ask of the problem it serves."""

    moderator: Moderator[Any, Any]

    def get_target_logprobs(self, contexts: Sequence[Any], continuations: Sequence[Any]) -> Tensor:
        """Score attacks under the target, shape (B, T)."""

    def get_baseline_logprobs(
        self, contexts: Sequence[Any], continuations: Sequence[Any]
    ) -> Tensor:
        """Score attacks under the frozen reference, shape (B, T)."""


class RewardTerm(ABC):
    """One part of a reward.

    Attributes:
        name: How it is called in logs and records.
    """

    name: str

    @abstractmethod
    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return one number per turn; NaN where it could not be computed."""


class Reward(ABC):
    """A rule that turns named terms into one number per turn."""

    @abstractmethod
    def __call__(
        self, models: RewardModels, exchanges: Sequence[Exchange]
    ) -> tuple[list[float], list[dict[str, float]]]:
        """Return each turn's reward and its terms by name."""


def measure(
    terms: Sequence[RewardTerm], models: RewardModels, exchanges: Sequence[Exchange]
) -> list[dict[str, float]]:
    """Evaluate several terms; returns one mapping of name to value per turn."""
    rows: list[dict[str, float]] = [{} for _ in exchanges]
    for term in terms:
        values = term(models, exchanges)
        check_length(values, len(exchanges), source=f"reward term {term.name!r}")
        for row, value in zip(rows, values, strict=True):
            row[term.name] = float(value)
    return rows


class WeightedSum(Reward):
    """The sum of terms, each times its weight. A missing term makes the reward missing.

    Args:
        weights: Terms and their weights. A term of weight 0 is measured and recorded only.

    Raises:
        ConfigurationError: Two terms have the same name.
    """

    def __init__(self, weights: Mapping[RewardTerm, float]) -> None:
        self.weights = dict(weights)
        names = [term.name for term in self.weights]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(
                    f"two reward terms are called {name!r}; give each term once."
                )

    def __call__(
        self, models: RewardModels, exchanges: Sequence[Exchange]
    ) -> tuple[list[float], list[dict[str, float]]]:
        """Return each turn's weighted sum and all terms."""
        rows = measure(list(self.weights), models, exchanges)
        # Left out rather than multiplied by zero: zero times NaN is NaN, and a term that is only
        # watched must not cost a turn its reward.
        active = [(term.name, weight) for term, weight in self.weights.items() if weight != 0]
        return [sum(weight * row[name] for name, weight in active) for row in rows], rows
