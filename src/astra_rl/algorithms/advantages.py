"""How much better than expected a turn was: pure functions of rewards, and one running baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError

Scale = Literal["group", "batch", "none"]

STD_FLOOR = 1e-4
"""Added to a standard deviation before dividing by it, as in common implementations of GRPO."""
TIE_TOLERANCE = 1e-6
"""Rewards closer than this are equal: the last bits of a judge's score teach nothing."""


def group_advantages(rewards: Sequence[float], *, scale: Scale = "group") -> list[float]:
    """Advantages of siblings relative to each other (Shao et al. 2024, arXiv 2402.03300, sec. 4.1).

    Missing rewards get NaN and do not count for the others. A group of fewer than two present
    rewards, or of equal ones, has advantages of zero.

    Args:
        rewards: One per sibling.
        scale: ``"group"`` divides by the group's standard deviation (n - 1); anything else does
            not (Liu et al. 2025, arXiv 2503.20783: dividing favours groups that are too easy or
            too hard).
    """
    present = [reward for reward in rewards if not is_missing(reward)]
    if len(present) < 2 or max(present) - min(present) < TIE_TOLERANCE:
        return [math.nan if is_missing(reward) else 0.0 for reward in rewards]
    mean = statistics.fmean(present)
    divisor = statistics.stdev(present) + STD_FLOOR if scale == "group" else 1.0
    return [math.nan if is_missing(reward) else (reward - mean) / divisor for reward in rewards]


def scale_by_batch(advantages: Sequence[float]) -> list[float]:
    """Divide advantages by their root mean square over all groups.

    Unlike division by each group's own deviation, this leaves a group without a success small: its
    differences are noise, and are not blown up to the size of a real one.
    """
    present = [value for value in advantages if not is_missing(value)]
    if not present:
        return list(advantages)
    size = math.sqrt(math.fsum(value * value for value in present) / len(present))
    return [value / (size + STD_FLOOR) for value in advantages]


class RunningBaseline:
    """Exponential moving average of rewards, for turns that have no siblings to compare with.

    Args:
        decay: Share of the old average that stays at each update, in [0, 1).

    Raises:
        ConfigurationError: `decay` is out of range.
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise ConfigurationError(f"baseline decay={decay}; it must be in [0, 1).")
        self.decay = decay
        self.value: float | None = None

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """Return ``reward - average`` and move the average; the first call takes its own mean."""
        present = [reward for reward in rewards if not is_missing(reward)]
        if not present:
            return [math.nan for _ in rewards]
        mean = statistics.fmean(present)
        baseline = mean if self.value is None else self.value
        self.value = self.decay * baseline + (1 - self.decay) * mean
        return [reward - baseline for reward in rewards]

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the average."""
        self.value = state["value"]
