"""Fluency of attacks: negative log-likelihood per token under a language model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # records need pydantic, which `import astra_rl` does without
    from astra_rl.evaluation.records.attempt import Attempt


@dataclass(frozen=True)
class Fluency:
    """Negative log-likelihood of attacks under one model, in nats per token; lower is likelier.

    Attributes:
        under: Role or name of the model.
        attacks: Attacks that were measured; NaN in all numbers without any.
        missing: Attacks that were not.
        mean: Of the attacks, each counting alike.
        low: 10% of the attacks are likelier.
        median: Half of them are.
        high: 90% of them are.
    """

    under: str
    attacks: int
    missing: int
    mean: float
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, under: str, values: Sequence[float], missing: int = 0) -> Fluency:
        """Sum up the nats per token of attacks.

        Args:
            under: Role or name of the model.
            values: One per measured attack.
            missing: Attacks that were not measured.
        """
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9]) if values else [math.nan] * 3
        mean = math.fsum(values) / len(values) if values else math.nan
        return cls(under, len(values), missing, mean, float(low), float(median), float(high))

    def as_dict(self) -> dict[str, float | str]:
        """Return all numbers by name."""
        return asdict(self)


def fluency(attempts: Iterable[Attempt], *, under: str) -> Fluency:
    """Say how natural the attacks read to a model.

    Under the target it says what a perplexity filter in front of it would see; under another model
    whether that is language at all, since a target may have been talked into anything.

    Args:
        attempts: Whose attacks.
        under: Role or name of the model, a key of `Turn.logprobs`.
    """
    turns = [turn for attempt in attempts for turn in attempt.turns]
    values = [-turn.logprobs[under].per_token for turn in turns if under in turn.logprobs]
    return Fluency.of(under, values, missing=len(turns) - len(values))
