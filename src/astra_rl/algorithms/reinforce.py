"""REINFORCE with a running average, and REINFORCE++ with and without groups."""

from __future__ import annotations

from functools import partial
from typing import Unpack

from astra_rl.algorithms.advantages import group_advantages
from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.estimators import (
    BatchNormalized,
    GroupBaseline,
    MonteCarloReturn,
    RunningMeanBaseline,
)
from astra_rl.algorithms.losses import PolicyLoss
from astra_rl.algorithms.policy_gradient import PolicyGradient, PolicyOptions
from astra_rl.algorithms.policy_steps import Group
from astra_rl.core.problem import Problem


class REINFORCE(PolicyGradient):
    """REINFORCE (Williams 1992) with a running average of rewards as the baseline.

    It needs neither groups nor a value function nor a ratio, and takes each experience once.

    Args:
        problem: See `PolicyGradient`.
        credit: How turns are credited with what follows, one of `CREDITS`.
        gamma: Discount per turn, of the backups.
        baseline_decay: Share of the old average that stays.
        options: See `PolicyGradient`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        credit: str = "turn",
        gamma: float = 0.9,
        baseline_decay: float = 0.9,
        **options: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(
            problem,
            RunningMeanBaseline(Credit(credit, gamma), baseline_decay),
            PolicyLoss(surrogate="reinforce", reduce="sequence_sum"),
            **options,
        )


class ReinforcePlusPlus(PolicyGradient):
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): PPO without a value function or groups.

    Advantages are the returns of tokens, divergence included, normalised over the whole batch.

    Args:
        problem: See `PolicyGradient`.
        clip_low: The probability ratio counts down to ``1 - clip_low``.
        clip_high: The probability ratio counts up to ``1 + clip_high``.
        credit: How turns are credited with what follows, one of `CREDITS`.
        gamma: Discount per turn, of the backups.
        options: See `PolicyGradient`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        credit: str = "turn",
        gamma: float = 0.9,
        **options: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(
            problem,
            BatchNormalized(MonteCarloReturn(Credit(credit, gamma))),
            PolicyLoss(clip_low=clip_low, clip_high=clip_high),
            **options,
        )


class ReinforcePlusPlusBaseline(PolicyGradient):
    """REINFORCE++ with the mean of the group as its baseline (Hu et al. 2025, sec. 3).

    Unlike GRPO it normalises over the batch, not within a group.

    Args:
        problem: See `PolicyGradient`.
        clip_low: See `ReinforcePlusPlus`.
        clip_high: See `ReinforcePlusPlus`.
        credit: See `ReinforcePlusPlus`.
        gamma: See `ReinforcePlusPlus`.
        group: Which attacks are compared with each other, see `GroupPolicyGradient`.
        baseline_decay: Of the running average that attacks without others are compared with.
        options: See `PolicyGradient`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        credit: str = "turn",
        gamma: float = 0.9,
        group: Group = "siblings",
        baseline_decay: float = 0.9,
        **options: Unpack[PolicyOptions],
    ) -> None:
        comparison = GroupBaseline(
            Credit(credit, gamma),
            group,
            partial(group_advantages, scale="none"),
            decay=baseline_decay,
        )
        super().__init__(
            problem,
            BatchNormalized(comparison),
            PolicyLoss(clip_low=clip_low, clip_high=clip_high),
            **options,
        )
