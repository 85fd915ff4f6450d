"""Local targets that training attacks in turn, one drawn per training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from transformers import PreTrainedModel

from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.model_pool import ModelSource
from astra_rl.ext.transformers.target_adapters import LocalTarget


class Opponent(NamedTuple):
    """A local target that training attacks in some of its steps.

    Attributes:
        source: A model to load. LoRA adapters of one base model share its weights.
        weight: How often it is drawn, relative to the others; positive.
    """

    source: ModelSource
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Name of the target in records."""
        source = self.source
        return str(source) if isinstance(source, str | Path) else "a model in memory"


@dataclass(frozen=True)
class LoadedTarget:
    """A local target in memory.

    Attributes:
        name: Its name in records; None for the target under test, which the run names.
        model: Its model; the base model, if it is an adapter that shares one.
        adapter: Name of that adapter, see `SharedAdapters`; None without one.
        speaks: How it answers and scores.
    """

    name: str | None
    model: PreTrainedModel
    adapter: str | None
    speaks: LocalTarget


def draw(opponents: Sequence[Opponent], seed: int) -> int:
    """Return the index of an opponent, drawn by weight; the same seed draws the same.

    Raises:
        ConfigurationError: A weight is not positive.
    """
    weights = [each.weight for each in opponents]
    if not all(weight > 0 for weight in weights):
        raise ConfigurationError(f"weights {weights} of opponents; all must be positive.")
    return Random(seed).choices(range(len(opponents)), weights)[0]
