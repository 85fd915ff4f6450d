"""Advantages as pure functions of rewards, and a running baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from astra_rl.algorithms.weighting import weighted_mean_of_present
from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError

Scale = Literal["group", "batch", "none"]

STD_FLOOR = 1e-4
"""Added to a standard deviation before dividing by it, as in common implementations of GRPO."""
TIE_TOLERANCE = 1e-6
"""Rewards closer than this are equal: smaller differences are rounding of a judge's score."""


def group_advantages(rewards: Sequence[float], *, scale: Scale = "group") -> list[float]:
    """Advantages of siblings relative to each other (Shao et al. 2024, arXiv 2402.03300, sec. 4.1).

    A missing reward has advantage NaN and is ignored for the others. A group of fewer than two
    present rewards, or of equal ones, has advantages of zero.

    Args:
        rewards: Reward of each sibling; NaN if missing.
        scale: ``"group"`` divides by the group's standard deviation (n - 1); anything else does
            not (Liu et al. 2025, arXiv 2503.20783: dividing favours groups that are too easy or
            too hard).
    """
    present = [reward for reward in rewards if not is_missing(reward)]
    if is_tied(present):
        return [math.nan if is_missing(reward) else 0.0 for reward in rewards]
    mean = statistics.fmean(present)
    divisor = group_divisor(present) if scale == "group" else 1.0
    return [math.nan if is_missing(reward) else (reward - mean) / divisor for reward in rewards]


def leave_one_out_advantages(rewards: Sequence[float]) -> list[float]:
    """Each reward minus the mean of the others (Kool et al. 2019; Ahmadian et al. 2024, RLOO).

    arXiv 2402.14740, sec. 3.2. Missing rewards, single and equal ones: as for `group_advantages`.
    """
    centred = group_advantages(rewards, scale="none")
    count = sum(not is_missing(value) for value in centred)
    # r - (sum - r) / (n - 1) is (r - mean) * n / (n - 1)
    return [value * count / (count - 1) for value in centred] if count > 1 else centred


def group_divisor(rewards: Sequence[float]) -> float:
    """Standard deviation (n - 1) of the rewards of a group plus `STD_FLOOR`; 1 if they tie.

    Rewards are those without a KL penalty. If the penalty were included, a group whose rewards tie
    would be divided by the spread of its penalties, and the KL coefficient would have no effect.
    """
    present = [reward for reward in rewards if not is_missing(reward)]
    return 1.0 if is_tied(present) else statistics.stdev(present) + STD_FLOOR


def batch_divisor(advantages: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Root mean square of advantages without a KL penalty, plus `STD_FLOOR`; 1 if all are zero.

    Unlike division by the standard deviation of each group, this does not amplify the noise of a
    group without a success.

    Args:
        advantages: NaN is ignored.
        weights: Weights of the advantages in the mean, those of the loss; None: all the same.
    """
    present = [value for value in advantages if not is_missing(value)]
    if not present or max(map(abs, present)) < TIE_TOLERANCE:
        return 1.0
    weights = [1.0] * len(advantages) if weights is None else weights
    mean = weighted_mean_of_present((value * value for value in advantages), weights)
    return math.sqrt(mean) + STD_FLOOR


def is_tied(rewards: Sequence[float]) -> bool:
    """Whether all rewards are equal up to `TIE_TOLERANCE`; True for fewer than two."""
    return len(rewards) < 2 or max(rewards) - min(rewards) < TIE_TOLERANCE


def whiten(
    rows: Sequence[Sequence[float]],
    weights: Sequence[float],
    *,
    measured: Sequence[Sequence[float]] | None = None,
    least: float = 0.0,
) -> list[tuple[float, ...]]:
    """Shift all values of all rows to mean 0, and divide them by their standard deviation.

    Args:
        rows: Values of the tokens of each row. NaN stays NaN and is ignored.
        weights: Weights of the rows in mean and deviation; a row of weight 0 is transformed only.
        measured: Values whose standard deviation is the divisor, in the shape of `rows`; the
            divisor is 1 if they all tie. None: that of `rows`.
        least: Lower bound of the divisor; 1 only scales down.
    """
    mean, deviation = _moments(rows, weights)
    if measured is not None:
        _, deviation = _moments(measured, weights)
        deviation = deviation if deviation >= TIE_TOLERANCE else 1.0 - STD_FLOOR
    divisor = max(deviation + STD_FLOOR, least)
    return [tuple((value - mean) / divisor for value in row) for row in rows]


def _moments(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> tuple[float, float]:
    """Return the weighted mean and standard deviation of the values that are not missing."""
    pairs = [
        (value, weight)
        for row, weight in zip(rows, weights, strict=True)
        for value in row
        if not is_missing(value)
    ]
    size = math.fsum(weight for _, weight in pairs) or 1.0
    mean = math.fsum(value * weight for value, weight in pairs) / size
    variance = math.fsum(weight * (value - mean) ** 2 for value, weight in pairs) / size
    return mean, math.sqrt(variance)


def explained_variance(estimates: Sequence[float], outcomes: Sequence[float]) -> float:
    """Share of the outcomes' variance that the estimates account for; NaN if there is none.

    1 is perfect, 0 no better than a constant, less than 0 worse than that.
    """
    if len(outcomes) < 2 or max(outcomes) - min(outcomes) < TIE_TOLERANCE:
        return math.nan
    errors = [outcome - guess for outcome, guess in zip(outcomes, estimates, strict=True)]
    return 1 - statistics.pvariance(errors) / statistics.pvariance(outcomes)


class RunningBaseline:
    """Exponential moving average of rewards, the baseline of turns without siblings.

    Args:
        decay: Decay of the average per update, in [0, 1).

    Raises:
        ConfigurationError: `decay` is out of range.
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise ConfigurationError(f"baseline_decay={decay}; it must be in [0, 1).")
        self.decay = decay
        self.value: float | None = None

    def advantages(
        self, rewards: Sequence[float], weights: Sequence[float] | None = None
    ) -> list[float]:
        """Return ``reward - average``, then update the average; it starts at the first mean.

        Args:
            rewards: NaN is ignored.
            weights: Weights of the rewards in the mean, those of the loss; None: all the same.
        """
        weights = [1.0] * len(rewards) if weights is None else weights
        mean = weighted_mean_of_present(rewards, weights)
        if is_missing(mean):
            return [math.nan for _ in rewards]
        baseline = mean if self.value is None else self.value
        self.value = self.decay * baseline + (1 - self.decay) * mean
        return [reward - baseline for reward in rewards]

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average."""
        self.value = state["value"]
