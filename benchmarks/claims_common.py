"""What the parts of `claims.py` share: coverage over situations, and prompts that differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from common import Row

REPETITIONS = 200
Inside = Callable[[np.random.Generator], bool | None]
"""Draws a population and its sample; returns whether the interval has the truth, None if it is
refused."""


def coverage(claim: str, situations: Mapping[str, Inside], bar: float = 0.93) -> Row:
    """Return the lowest share of intervals with the truth over some situations."""
    found: dict[str, float] = {}
    for name, inside in situations.items():
        rng = np.random.default_rng(0)
        known = [each for _ in range(REPETITIONS) if (each := inside(rng)) is not None]
        found[name] = float(np.mean(known)) if known else 1.0
        print("  ", name, found[name], len(known), flush=True)
    detail = {"situations": found, "repetitions": REPETITIONS}
    return Row(claim, min(found.values()), bar, unit="", detail=detail)


def has(interval: Sequence[float], truth: float) -> bool:
    return bool(interval[0] <= truth <= interval[1])


def beta_rates(rng: np.random.Generator, mean: float, icc: float, count: int) -> Any:
    size = 1 / icc - 1
    return rng.beta(mean * size, (1 - mean) * size, size=count)
