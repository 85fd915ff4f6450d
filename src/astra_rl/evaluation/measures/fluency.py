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
        attacks: Number of measured attacks; without any, all statistics are NaN.
        missing: Number of attacks that were not measured.
        mean: Mean over attacks.
        low: 10% quantile.
        median: Median.
        high: 90% quantile.
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
        """Compute the statistics.

        Args:
            under: Role or name of the model.
            values: NLL per token of each measured attack, in nats.
            missing: Number of attacks that were not measured.
        """
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9]) if values else [math.nan] * 3
        mean = math.fsum(values) / len(values) if values else math.nan
        return cls(under, len(values), missing, mean, float(low), float(median), float(high))

    def as_dict(self) -> dict[str, float | str]:
        """Return all numbers by name."""
        return asdict(self)


def fluency(attempts: Iterable[Attempt], *, under: str) -> Fluency:
    """Measure how fluent attacks are under a model.

    Under the target it is what a perplexity filter would measure. Another model is a better
    reference for natural language, because the target is conditioned on the attack's context.

    Args:
        attempts: Attempts whose attacks are measured.
        under: Role or name of the model, a key of `Turn.logprobs`.
    """
    turns = [turn for attempt in attempts for turn in attempt.turns]
    values = [-turn.logprobs[under].per_token for turn in turns if under in turn.logprobs]
    return Fluency.of(under, values, missing=len(turns) - len(values))
