"""Points of charts that have a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from astra_rl.core.contracts import is_missing


def number_of(value: Any) -> float:
    """Return a number unchanged, and NaN for a missing one (None or NaN in JSON)."""
    return value if isinstance(value, int | float) and not is_missing(value) else math.nan


def with_values(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of which both numbers are known."""
    return [point for point in points if not is_missing(sum(point))]
