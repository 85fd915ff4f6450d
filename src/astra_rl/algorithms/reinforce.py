"""REINFORCE with a moving-average baseline, and REINFORCE++ with and without groups."""

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
from astra_rl.algorithms.losses import ClipHigh, ClipLow, PolicyLoss
from astra_rl.algorithms.options import CLIP, CREDIT, GROUP, POLICY
from astra_rl.algorithms.policy_gradient import PolicyGradient, PolicyOptions
from astra_rl.algorithms.policy_steps import Group
from astra_rl.core.problem import Problem
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Decay, Share
from astra_rl.infra.registry import named


@named("reinforce")
@document_options(CREDIT, POLICY)
class REINFORCE(PolicyGradient):
    """REINFORCE (Williams 1992) with an exponential moving average of rewards as the baseline.

    It needs no groups, no value function and no ratio, and uses each experience once.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        baseline_decay: Decay of the moving average of rewards, in [0, 1).
    """

    has_ratio = False

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        credit: str = "turn",
        gamma: Share = 0.9,
        baseline_decay: Decay = 0.9,
        **options: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(
            problem,
            RunningMeanBaseline(Credit(credit, gamma), baseline_decay),
            PolicyLoss(surrogate="reinforce", reduce="sequence_sum"),
            **options,
        )


@named("reinforce++")
@document_options(CLIP, CREDIT, POLICY)
class ReinforcePlusPlus(PolicyGradient):
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): PPO without a value function or groups.

    Advantages are the returns of tokens, KL penalty included, whitened over the whole batch.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: ClipLow = 0.2,
        clip_high: ClipHigh = 0.2,
        credit: str = "turn",
        gamma: Share = 0.9,
        **options: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(
            problem,
            BatchNormalized(MonteCarloReturn(Credit(credit, gamma))),
            PolicyLoss(clip_low=clip_low, clip_high=clip_high),
            **options,
        )


@named("reinforce++_baseline")
@document_options(CLIP, CREDIT, GROUP, POLICY)
class ReinforcePlusPlusBaseline(PolicyGradient):
    """REINFORCE++ with the group mean as the baseline (Hu et al. 2025, arXiv 2501.03262, sec. 3).

    Unlike GRPO it whitens advantages over the batch, not within a group.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: ClipLow = 0.2,
        clip_high: ClipHigh = 0.2,
        credit: str = "turn",
        gamma: Share = 0.9,
        group: Group = "siblings",
        baseline_decay: Decay = 0.9,
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
