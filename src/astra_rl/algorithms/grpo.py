"""Comparing attacks with others of their group: GRPO, its descendants, and RLOO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack, get_args

from astra_rl.algorithms.advantages import (
    Scale,
    group_advantages,
    leave_one_out_advantages,
    scale_by_batch,
)
from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.dynamic_sampling import DynamicSampling
from astra_rl.algorithms.estimators import GroupBaseline
from astra_rl.algorithms.losses import PolicyLoss, Reduction
from astra_rl.algorithms.policy_gradient import PolicyGradient, PolicyOptions
from astra_rl.algorithms.policy_steps import Group, PolicyStep, steps_of
from astra_rl.core.common import Metrics
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.errors import ConfigurationError


class GroupOptions(PolicyOptions, total=False):
    """Options of every member; `GroupPolicyGradient` says what they mean."""

    credit: str
    gamma: float
    group: Group
    baseline_decay: float


class GroupPolicyGradient(PolicyGradient):
    """Compare each attack with the others of its group.

    An attack without others (a tree of width 1) is compared with a running average instead.

    Args:
        problem: See `PolicyGradient`.
        loss: See `PolicyGradient`.
        compare: Credits of a group to advantages.
        scale: Advantages of all groups to those that are used.
        keep_dead: See `GroupBaseline`.
        credit: How turns are credited with what follows, one of `CREDITS`.
        gamma: Discount per turn, of the backups.
        group: Which attacks are compared with each other: ``"siblings"``, those tried from one
            context; ``"episode"``, all of one; ``"prompt"``, all of the episodes that open alike.
        baseline_decay: Of the running average.
        options: See `PolicyGradient`.
    """

    estimator: GroupBaseline

    def __init__(
        self,
        problem: Problem[str, str],
        loss: PolicyLoss,
        compare: Callable[[Sequence[float]], list[float]],
        scale: Callable[[Sequence[float]], list[float]] = list,
        keep_dead: bool = True,
        /,
        *,
        credit: str = "turn",
        gamma: float = 0.9,
        group: Group = "siblings",
        baseline_decay: float = 0.9,
        **options: Unpack[PolicyOptions],
    ) -> None:
        comparison = GroupBaseline(
            Credit(credit, gamma),
            group,
            compare,
            scale=scale,
            decay=baseline_decay,
            keep_dead=keep_dead,
        )
        super().__init__(problem, comparison, loss, **options)


class GRPO(GroupPolicyGradient):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

    The advantage of an attack is its reward less the mean of its group, divided by the group's
    standard deviation; the loss is the mean over attacks of PPO's clipped surrogate.

    Args:
        problem: See `PolicyGradient`.
        clip_low: The probability ratio counts down to ``1 - clip_low``.
        clip_high: The probability ratio counts up to ``1 + clip_high``.
        scale: What advantages are divided by: the standard deviation of their ``"group"``, their
            root mean square over the ``"batch"``, or ``"none"``.
        reduce: ``"sequence"`` means over each attack first, as the paper does; ``"token"`` means
            over all tokens, so that those of a long attack count no less.
        options: See `GroupPolicyGradient` and `PolicyGradient`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        scale: Scale = "group",
        reduce: Reduction = "sequence",
        **options: Unpack[GroupOptions],
    ) -> None:
        loss = PolicyLoss(clip_low=clip_low, clip_high=clip_high, reduce=reduce)
        super().__init__(problem, loss, *_scaled(scale), **options)


class DrGRPO(GroupPolicyGradient):
    """GRPO done right (Liu et al. 2025, arXiv 2503.20783): without its two biases.

    Advantages are not divided by the standard deviation, which favours groups that are too easy or
    too hard; and the loss is a sum over tokens divided by a constant, so that neither short right
    nor long wrong attacks are favoured.

    Args:
        problem: See `PolicyGradient`.
        clip_low: See `GRPO`.
        clip_high: See `GRPO`.
        max_tokens: The constant: the most tokens of an attack.
        options: See `GroupPolicyGradient` and `PolicyGradient`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        max_tokens: int = 32,
        **options: Unpack[GroupOptions],
    ) -> None:
        if max_tokens < 1:
            raise ConfigurationError(f"max_tokens={max_tokens}; it must be at least 1.")
        loss = PolicyLoss(
            clip_low=clip_low, clip_high=clip_high, reduce="sequence_sum", divisor=max_tokens
        )
        super().__init__(problem, loss, *_scaled("none"), **options)


class DAPO(GroupPolicyGradient):
    """Decoupled clip and dynamic sampling (Yu et al. 2025, arXiv 2503.14476).

    The upper bound of the ratio is further away than the lower, so that rare tokens can become
    likely; the loss is a mean over tokens; and groups whose rewards are all alike are left out and
    others played in their place. The paper's penalty for overlong answers is not among it: an
    attack has a limit of tokens.

    Args:
        problem: See `PolicyGradient`.
        clip_low: See `GRPO`.
        clip_high: See `GRPO`.
        scale: See `GRPO`.
        refill_rounds: So many times others are played at most.
        options: See `GroupPolicyGradient` and `PolicyGradient`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        scale: Scale = "group",
        refill_rounds: int = 3,
        **options: Unpack[GroupOptions],
    ) -> None:
        loss = PolicyLoss(clip_low=clip_low, clip_high=clip_high)
        super().__init__(problem, loss, *_scaled(scale), False, **options)
        self.collector = DynamicSampling(self._teaching, refill_rounds)
        self._played: Metrics = {}

    def experience_metrics(self) -> Metrics:
        """Return what is known, with the share of groups without signal among all played."""
        return {**super().experience_metrics(), **self._played}

    def _teaching(self, graphs: Sequence[Graph[str, str]]) -> list[Graph[str, str]]:
        """Return the episodes in which some group has a signal."""
        steps = [step for graph in graphs for step in steps_of(graph)]
        kept = _episodes(steps, self.estimator.live(steps))
        teaching = [graph for graph in graphs if id(graph) in kept]
        self._played = {
            **self.estimator.measure(steps),
            "refill/kept": len(teaching) / len(graphs),
        }
        return teaching


class GSPO(GroupPolicyGradient):
    """Group sequence policy optimisation (Zheng et al. 2025, arXiv 2507.18071).

    The ratio, and what is clipped, is that of the whole attack to the power of one over its length.

    Args:
        problem: See `PolicyGradient`.
        clip_low: See `GRPO`; such ratios stay far nearer to 1 than those of tokens.
        clip_high: See `GRPO`.
        scale: See `GRPO`.
        options: See `GroupPolicyGradient` and `PolicyGradient`; `old_logprobs` is ``"scored"``
            unless given, for rounding alone would exceed such bounds.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: float = 3e-4,
        clip_high: float = 4e-4,
        scale: Scale = "group",
        **options: Unpack[GroupOptions],
    ) -> None:
        loss = PolicyLoss(
            ratio="sequence_mean", clip_low=clip_low, clip_high=clip_high, reduce="sequence"
        )
        super().__init__(
            problem, loss, *_scaled(scale), **(GroupOptions(old_logprobs="scored") | options)
        )


class CISPO(GroupPolicyGradient):
    """Clipped importance-sampling weights (MiniMax 2025, arXiv 2506.13585).

    The weight of a token is clipped instead of its update, so that the rare tokens which matter
    most keep their gradient.

    Args:
        problem: See `PolicyGradient`.
        max_ratio: The probability ratio counts up to this, more than 1.
        scale: See `GRPO`.
        options: See `GroupPolicyGradient` and `PolicyGradient`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        max_ratio: float = 5.0,
        scale: Scale = "group",
        **options: Unpack[GroupOptions],
    ) -> None:
        if not max_ratio > 1:
            raise ConfigurationError(f"max_ratio={max_ratio}; it must be more than 1.")
        loss = PolicyLoss(surrogate="cispo", clip_high=max_ratio - 1)
        super().__init__(problem, loss, *_scaled(scale), **options)


class RLOO(GroupPolicyGradient):
    """REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740).

    The baseline of an attack is the mean reward of the others of its group, and the whole attack
    is one action: its ratio is that of all its tokens together.

    Args:
        problem: See `PolicyGradient`.
        clip_low: See `GRPO`.
        clip_high: See `GRPO`.
        options: See `GroupPolicyGradient` and `PolicyGradient`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        **options: Unpack[GroupOptions],
    ) -> None:
        loss = PolicyLoss(
            ratio="sequence_sum", clip_low=clip_low, clip_high=clip_high, reduce="sequence"
        )
        super().__init__(problem, loss, leave_one_out_advantages, **options)


def _scaled(scale: Scale) -> tuple[Any, Any]:
    """How the members of a group are compared, and how all advantages are scaled then."""
    if scale not in get_args(Scale):
        raise ConfigurationError(f"scale={scale!r}; choose from {list(get_args(Scale))}.")
    return partial(group_advantages, scale=scale), scale_by_batch if scale == "batch" else list


def _episodes(steps: Sequence[PolicyStep], wanted: Sequence[bool]) -> set[int]:
    return {id(step.place.episode) for step, want in zip(steps, wanted, strict=True) if want}
