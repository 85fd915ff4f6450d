"""Group-relative policy gradients: GRPO, Dr. GRPO, DAPO, GSPO, CISPO and RLOO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Unpack

from astra_rl.algorithms.advantages import (
    Scale,
    group_advantages,
    leave_one_out_advantages,
)
from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.dynamic_sampling import DynamicSampling
from astra_rl.algorithms.estimators import GroupBaseline
from astra_rl.algorithms.losses import ClipHigh, ClipLow, PolicyLoss, Reduction
from astra_rl.algorithms.options import CLIP, CREDIT, GROUP, POLICY, SCALE
from astra_rl.algorithms.policy_gradient import PolicyGradient, PolicyOptions
from astra_rl.algorithms.policy_steps import Group, PolicyStep, steps_of
from astra_rl.core.common import Metrics
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Count, CountOrZero, Decay, Range, Share
from astra_rl.infra.registry import named

CENTRE = partial(group_advantages, scale="none")
"""Subtracts the mean of a group."""


class GroupOptions(PolicyOptions, total=False):
    """Options of all group-relative algorithms."""

    credit: str
    gamma: float
    group: Group
    baseline_decay: float


@document_options(CREDIT, GROUP, POLICY)
class GroupPolicyGradient(PolicyGradient):
    """Policy gradient whose baseline is the mean reward of the group of an attack.

    An attack without others in its group (tree width 1) is compared with a running average.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        loss: Configuration of the loss.
        compare: Maps the credits of a group to advantages, without scaling them.
        scale: Divisor of the advantages, see `GroupBaseline`.
        keep_dead: Whether a group whose members all have the same credit stays in the batch.
    """

    estimator: GroupBaseline

    def __init__(
        self,
        problem: Problem[str, str],
        loss: PolicyLoss,
        compare: Callable[[Sequence[float]], list[float]],
        scale: Scale = "none",
        keep_dead: bool = True,
        /,
        *,
        credit: str = "turn",
        gamma: Share = 0.9,
        group: Group = "siblings",
        baseline_decay: Decay = 0.9,
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


@named("grpo")
@document_options(CLIP, SCALE, CREDIT, GROUP, POLICY)
class GRPO(GroupPolicyGradient):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

    The advantage of an attack is its reward minus the mean of its group, divided by the standard
    deviation of the group; the loss is PPO's clipped surrogate, averaged over attacks.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        reduce: Reduction of the loss: ``"sequence"``, the mean over attacks of their means over
            tokens, as in the paper; ``"token"``, the mean over all tokens, so that the tokens of
            long attacks have the same weight; or ``"sequence_sum"``.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: ClipLow = 0.2,
        clip_high: ClipHigh = 0.2,
        scale: Scale = "group",
        reduce: Reduction = "sequence",
        **options: Unpack[GroupOptions],
    ) -> None:
        loss = PolicyLoss(clip_low=clip_low, clip_high=clip_high, reduce=reduce)
        super().__init__(problem, loss, CENTRE, scale, **options)


@named("dr_grpo")
@document_options(CLIP, CREDIT, GROUP, POLICY)
class DrGRPO(GroupPolicyGradient):
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): GRPO without its two biases.

    Advantages are not divided by the standard deviation, which overweights groups that are too easy
    or too hard; and the loss is a sum over tokens divided by a constant, which removes the bias
    towards short successful and long unsuccessful attacks.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        max_tokens: The constant: maximum number of tokens of an attack; at least 1.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: ClipLow = 0.2,
        clip_high: ClipHigh = 0.2,
        max_tokens: Count = 32,
        **options: Unpack[GroupOptions],
    ) -> None:
        DrGRPO.check_options(max_tokens=max_tokens)
        loss = PolicyLoss(
            clip_low=clip_low, clip_high=clip_high, reduce="sequence_sum", divisor=max_tokens
        )
        super().__init__(problem, loss, CENTRE, **options)


@named("dapo")
@document_options(CLIP, SCALE, CREDIT, GROUP, POLICY)
class DAPO(GroupPolicyGradient):
    """Decoupled clip and dynamic sampling (Yu et al. 2025, arXiv 2503.14476).

    The upper clip bound is larger than the lower, so that unlikely tokens can become likely; the
    loss is a mean over tokens; and episodes whose groups all have equal rewards are replaced by
    newly sampled ones. The paper's penalty for overlong answers is not implemented: attacks have a
    maximum number of tokens.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        refill_rounds: Maximum number of resampling rounds; 0 drops such episodes without
            replacing them.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: ClipLow = 0.2,
        clip_high: ClipHigh = 0.28,
        scale: Scale = "group",
        refill_rounds: CountOrZero = 3,
        **options: Unpack[GroupOptions],
    ) -> None:
        loss = PolicyLoss(clip_low=clip_low, clip_high=clip_high)
        super().__init__(problem, loss, CENTRE, scale, False, **options)
        self.collector = DynamicSampling(self._informative, refill_rounds)
        self._played: Metrics = {}

    @classmethod
    def rounds_of_play(cls, **options: Any) -> int:
        """Return 1 and the resampling rounds."""
        return 1 + int(options.get("refill_rounds", 3))

    def experience_metrics(self) -> Metrics:
        """Return the metrics; groups without a signal are counted over all episodes played."""
        return {**super().experience_metrics(), **self._played}

    def on_collected(self, played: Sequence[Graph[Any, Any]], kept: Sequence[Any]) -> None:
        """Count the groups without a signal in all episodes played."""
        steps = [step for graph in played for step in steps_of(graph)]
        self._played = {
            **self.estimator.measure(steps),
            "refill/kept": len(kept) / len(played),
        }

    def _informative(self, graphs: Sequence[Graph[str, str]]) -> list[Graph[str, str]]:
        """Return the episodes in which some group has a learning signal."""
        steps = [step for graph in graphs for step in steps_of(graph)]
        kept = _episodes(steps, self.estimator.live(steps))
        return [graph for graph in graphs if id(graph) in kept]


@named("gspo")
@document_options(CLIP, SCALE, CREDIT, GROUP, POLICY, old_logprobs="scored")
class GSPO(GroupPolicyGradient):
    """Group sequence policy optimisation (Zheng et al. 2025, arXiv 2507.18071).

    The clipped ratio is the geometric mean of the token ratios of an attack. It stays closer to 1
    than token ratios, hence the narrow bounds. The sampler's log-probabilities are too imprecise
    for these, so ``old_logprobs`` is ``"scored"`` by default.

    A KL penalty in the loss is weighted by the ratio of each token, not, as in TRL, by the
    geometric mean: that mean is not an importance weight, and the expected gradient of an estimate
    weighted by it is not that of the KL.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: ClipLow = 3e-4,
        clip_high: ClipHigh = 4e-4,
        scale: Scale = "group",
        **options: Unpack[GroupOptions],
    ) -> None:
        loss = PolicyLoss(
            ratio="sequence_mean", clip_low=clip_low, clip_high=clip_high, reduce="sequence"
        )
        super().__init__(
            problem, loss, CENTRE, scale, **(GroupOptions(old_logprobs="scored") | options)
        )


@named("cispo")
@document_options(SCALE, CREDIT, GROUP, POLICY)
class CISPO(GroupPolicyGradient):
    """Clipped importance-sampling weights (MiniMax 2025, arXiv 2506.13585).

    The importance weight of a token is clipped instead of its objective, so that tokens outside the
    clip bounds keep a gradient.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        max_ratio: Upper clip bound of the probability ratio; more than 1.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        max_ratio: Annotated[float, Range(gt=1)] = 5.0,
        scale: Scale = "group",
        **options: Unpack[GroupOptions],
    ) -> None:
        CISPO.check_options(max_ratio=max_ratio)
        loss = PolicyLoss(surrogate="cispo", clip_high=max_ratio - 1)
        super().__init__(problem, loss, CENTRE, scale, **options)


@named("rloo")
@document_options(CLIP, CREDIT, GROUP, POLICY, kl_gradient="sequence")
class RLOO(GroupPolicyGradient):
    """REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740).

    The baseline of an attack is the mean reward of the others of its group; if these are its
    siblings, the gradient is unbiased. The whole attack is one action: its ratio is the product of
    its token ratios, and a KL penalty in the loss is that of the whole attack, with its exact
    gradient (``kl_gradient: sequence``).

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: ClipLow = 0.2,
        clip_high: ClipHigh = 0.2,
        **options: Unpack[GroupOptions],
    ) -> None:
        loss = PolicyLoss(
            ratio="sequence_sum", clip_low=clip_low, clip_high=clip_high, reduce="sequence"
        )
        if options.get("kl_corrected", True) and options.get("kl_estimator") != "k2":
            options = GroupOptions(kl_gradient="sequence") | options
        super().__init__(problem, loss, leave_one_out_advantages, **options)


def _episodes(steps: Sequence[PolicyStep], wanted: Sequence[bool]) -> set[int]:
    return {id(step.place.episode) for step, want in zip(steps, wanted, strict=True) if want}
