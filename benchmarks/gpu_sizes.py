"""How much the benchmarks of a GPU measure: rows, tokens, and a step of GRPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from gpu_models import Shape
from grpo_step import Setup

GROUP = 8
"""Rows with the same prompt."""
WORDS = 64
"""Words, which are tokens, of a prompt of a step of GRPO."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rows: Rows of a call that samples.
        prompt: Tokens of a prompt.
        new: Tokens that are sampled.
        scored: Rows of a call that scores.
        micro_batch: Rows of a backward pass.
        step: A step of GRPO.
        rows_of_step: Rows of its backward passes, by the name of a shape. The libraries must have
            the same, so it is what fits with full activations.
    """

    rows: tuple[int, ...] = (64, 256, 512)
    prompt: int = 64
    new: int = 128
    scored: int = 512
    micro_batch: int = 64
    step: Setup = field(default_factory=lambda: Setup(32, 8, 128, 64, 3))
    rows_of_step: Mapping[str, int] = field(default_factory=lambda: {"1.5B": 32, "8B": 8})

    def setup(self, name: str) -> Setup:
        """Return a step of GRPO with a model of this shape."""
        rows = self.rows_of_step.get(name, self.step.micro_batch)
        return replace(self.step, micro_batch=rows)

    def texts(self) -> list[str]:
        """Return the prompts of a step of GRPO."""
        return [
            " ".join(f"w{(17 * row + 3 * place) % 300}" for place in range(WORDS))
            for row in range(self.step.prompts)
        ]


def sizes_of(*, quick: bool) -> Sizes:
    """Return the sizes for a GPU, or those for tiny models on any device."""
    return Sizes((8, 16), 12, 6, 16, 8, Setup(2, 4, 6, 8, 2)) if quick else Sizes()


def prompts_of(shape: Shape, rows: int, length: int) -> list[list[int]]:
    """Return token ids of prompts, each `GROUP` times."""
    generator = torch.Generator().manual_seed(rows)
    distinct = torch.randint(
        2, shape.vocabulary, (-(-rows // GROUP), length), generator=generator
    ).tolist()
    return [distinct[row // GROUP] for row in range(rows)]
