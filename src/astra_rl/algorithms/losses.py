"""Losses as pure functions of tensors.

Shapes: B rows, T tokens. Everything is float32. Padding is excluded by a mask and never enters a
mean; `torch.where` and not a product removes it, because zero times NaN is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_rl.errors import ConfigurationError

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped here before `exp`; beyond it a float32 loss is noise."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is true; zero, with a gradient of zero, where it is nowhere."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / mask.sum().clamp(min=1)


def sequence_logprob(logprobs: Tensor, mask: Tensor, *, reduce: str) -> Tensor:
    """Log-probability of each row, shape (B,): the sum over its tokens, or their mean.

    Args:
        logprobs: Per token, (B, T).
        mask: Real tokens, (B, T), bool.
        reduce: ``"sum"`` or ``"mean"``. A row without tokens is 0 in both.
    """
    total = torch.where(mask, logprobs, torch.zeros_like(logprobs)).sum(dim=1)
    return total / mask.sum(dim=1).clamp(min=1) if reduce == "mean" else total


def dpo_loss(margin: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation, per pair (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    Args:
        margin: (B,), how much more the policy than the reference prefers the chosen text:
            ``(log pi(chosen) - log pi(rejected)) - (log ref(chosen) - log ref(rejected))``.
        beta: Strength of the tie to the reference, positive.
        label_smoothing: Share of pairs that are taken to be the wrong way round, in [0, 0.5):
            conservative DPO (Mitchell 2023, *A note on DPO with noisy preferences*, eq. 3).
    """
    right, wrong = -F.logsigmoid(beta * margin), -F.logsigmoid(-beta * margin)
    return (1 - label_smoothing) * right + label_smoothing * wrong if label_smoothing else right


def ipo_loss(margin: Tensor, beta: float, gap: Tensor | float = 1.0) -> Tensor:
    """Identity preference optimisation, per pair (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    Args:
        margin: (B,), as for `dpo_loss`. Its authors use mean log-probabilities per token.
        beta: The target margin is ``gap / (2 * beta)``; positive.
        gap: How much better the chosen text is: 1, or the difference of rewards, (B,) (Guo et al.
            2025, MTSA, arXiv 2505.17147).
    """
    return (margin - gap / (2 * beta)) ** 2


def hinge_loss(margin: Tensor, beta: float) -> Tensor:
    """Hinge loss, per pair (Zhao et al. 2023, SLiC-HF, arXiv 2305.10425, eq. 1, over a reference).

    Args:
        margin: (B,), as for `dpo_loss`.
        beta: A pair is right, and teaches nothing more, from a margin of ``1 / beta``; positive.
    """
    return F.relu(1 - beta * margin)


def simpo_loss(margin: Tensor, beta: float, gamma: float) -> Tensor:
    """Simple preference optimisation, per pair (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    Args:
        margin: (B,), ``log pi(chosen) - log pi(rejected)`` as means per token, without reference.
        beta: Scale of the margin, positive.
        gamma: By how much the scaled margin should exceed zero, not negative.
    """
    return -F.logsigmoid(beta * margin - gamma)


def kto_loss(log_ratio: Tensor, desirable: Tensor, divergence: Tensor, beta: float) -> Tensor:
    """Kahneman-Tversky optimisation, per text (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8).

    Args:
        log_ratio: (B,), ``log pi(text) - log ref(text)``.
        desirable: (B,), bool.
        divergence: (B,) or a scalar, KL(pi || ref) in nats, not negative, without gradient: the
            point that gains and losses are seen from.
        beta: How fast gains and losses saturate, positive.
    """
    gain = torch.where(desirable, log_ratio - divergence, divergence - log_ratio)
    return 1 - torch.sigmoid(beta * gain)


def balance_residual(logprobs: Tensor, log_rewards: Tensor, log_z: Tensor | float = 0.0) -> Tensor:
    """How far attacks are from balance, per attack, in nats: ``log Z + log pi - log R``, (B,).

    Its square is trajectory balance (Malkin et al. 2022, arXiv 2201.13259, eq. 14, for texts, where
    every state is reached in one way). It is zero for all attacks exactly if pi is R / Z.
    """
    return log_z + logprobs - log_rewards


def contrastive_loss(residual: Tensor, pairs: Tensor, *, huber: float | None = None) -> Tensor:
    """Mean squared difference of the residuals of each pair; zero, with a gradient, without pairs.

    Over all pairs of a batch it is twice the variance of the residuals.

    Args:
        residual: See `balance_residual`, without log Z, (B,).
        pairs: Which rows are compared, (B, B), bool, each pair once.
        huber: Differences beyond it count linearly (Huber's loss, which halves the square).
    """
    difference = residual[:, None] - residual[None, :]
    error = (
        difference**2
        if huber is None
        else F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=huber)
    )
    return torch.where(pairs, error, torch.zeros_like(error)).sum() / pairs.sum().clamp(min=1)


Surrogate = Literal["clip", "cispo", "reinforce"]
RatioLevel = Literal["token", "sequence_mean", "sequence_sum"]
Reduction = Literal["token", "sequence", "sequence_sum"]


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """Which of the policy-gradient losses: the configuration of the one kernel.

    Attributes:
        surrogate: ``"clip"`` is PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347,
            eq. 7); ``"cispo"`` weighs the log-probability by the clipped ratio, through which no
            gradient flows (MiniMax 2025, arXiv 2506.13585, eq. 4), so that no token is left out;
            ``"reinforce"`` has no ratio and takes the batch for one of the present policy.
        ratio: Of each token; of the whole attack to the power of one over its length (Zheng et al.
            2025, GSPO, arXiv 2507.18071, eq. 7); or of the whole attack.
        clip_low: The ratio counts down to ``1 - clip_low``; ``"cispo"`` has no such bound.
        clip_high: The ratio counts up to ``1 + clip_high``.
        reduce: ``"token"`` is the mean over tokens (Yu et al. 2025, DAPO, arXiv 2503.14476);
            ``"sequence"`` the mean over attacks of their means (Shao et al. 2024, GRPO, arXiv
            2402.03300); ``"sequence_sum"`` the mean over attacks of their sums.
        divisor: Of ``"sequence_sum"``, a constant: the most tokens of an attack (Liu et al. 2025,
            Dr. GRPO, arXiv 2503.20783).

    Raises:
        ConfigurationError: A value is out of range.
    """

    surrogate: Surrogate = "clip"
    ratio: RatioLevel = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    reduce: Reduction = "token"
    divisor: float = 1.0

    def __post_init__(self) -> None:
        values = vars(self)
        for name in ("clip_low", "clip_high", "divisor"):
            if not values[name] > 0:
                raise ConfigurationError(f"{name}={values[name]}; it must be positive.")
        choices = {"surrogate": Surrogate, "ratio": RatioLevel, "reduce": Reduction}
        for name, allowed in choices.items():
            if values[name] not in get_args(allowed):
                raise ConfigurationError(
                    f"{name}={values[name]!r}; choose from {list(get_args(allowed))}."
                )


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, kind: PolicyLoss
) -> Tensor:
    """Loss of each token, (B, T), to be minimised; its mean is what `reduce_tokens` makes of it.

    Args:
        logprobs: Of the policy, (B, T).
        old_logprobs: Of the policy that sampled, (B, T), without gradient.
        advantages: (B, 1) or (B, T), without gradient.
        mask: Real tokens, (B, T), bool.
        kind: Which loss.
    """
    if kind.surrogate == "reinforce":
        return -advantages * logprobs
    ratio = probability_ratio(logprobs, old_logprobs, mask, level=kind.ratio)
    if kind.surrogate == "cispo":
        return -ratio.detach().clamp(max=1 + kind.clip_high) * advantages * logprobs
    clipped = ratio.clamp(1 - kind.clip_low, 1 + kind.clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages).expand_as(logprobs)


def probability_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, level: RatioLevel = "token"
) -> Tensor:
    """``pi / pi_old``, safe against overflow: (B, T) of tokens, (B, 1) of whole rows.

    Args:
        logprobs: Of the policy, (B, T).
        old_logprobs: Of the policy that sampled, (B, T).
        mask: Real tokens, (B, T), bool.
        level: See `PolicyLoss`.
    """
    log_ratio = logprobs - old_logprobs
    if level != "token":
        reduce = "mean" if level == "sequence_mean" else "sum"
        log_ratio = sequence_logprob(log_ratio, mask, reduce=reduce)[:, None]
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def is_clipped(ratio: Tensor, advantages: Tensor, kind: PolicyLoss) -> tuple[Tensor, Tensor]:
    """Which tokens the bounds of the ratio take effect on: below, and above; both like the ratio.

    The gradient of such a token is zero under ``"clip"``, and bounded under ``"cispo"``.
    """
    low = (ratio < 1 - kind.clip_low) & (advantages < 0) & (kind.surrogate == "clip")
    high = (ratio > 1 + kind.clip_high) & (advantages > 0) & (kind.surrogate != "reinforce")
    return low, high


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Half the squared error of each estimate, clipped; in the shape of `values`.

    The larger of the error of the estimate and the error of an estimate that moved no further
    than `clip` from where it was (Schulman et al., baselines' PPO2; Huang et al. 2022, *The 37
    implementation details of PPO*, detail 9).

    Args:
        values: Estimates, with gradient.
        old_values: Estimates before the update.
        returns: What they should have been.
        clip: See above; infinity does not clip.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def reduce_tokens(
    values: Tensor, mask: Tensor, weights: Tensor, *, reduce: Reduction, divisor: float = 1.0
) -> Tensor:
    """One number of the values of tokens; zero, with a gradient of zero, where there are none.

    Args:
        values: (B, T).
        mask: Real tokens, (B, T), bool.
        weights: Of the rows, (B,): a row of weight 2 counts like two rows.
        reduce: See `PolicyLoss`.
        divisor: See `PolicyLoss`.
    """
    kept = torch.where(mask, values, torch.zeros_like(values)) * weights[:, None]
    if reduce == "token":
        return kept.sum() / (mask * weights[:, None]).sum().clamp(min=1)
    counts = mask.sum(dim=1).clamp(min=1)
    rows = kept.sum(dim=1) / (counts if reduce == "sequence" else divisor)
    return rows.sum() / weights.sum().clamp(min=1)


KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(pi || reference) from tokens that pi sampled, per token.

    Schulman 2020, *Approximating KL divergence*: with ``d = log ref - log pi``, k1 is ``-d``
    (unbiased, of either sign), k2 is ``d ** 2 / 2`` (biased, never negative), and k3 is
    ``exp(d) - 1 - d`` (unbiased, never negative).
    """
    difference = (reference_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference**2 / 2
    return difference.exp() - 1 - difference


def kl_penalty(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    old_logprobs: Tensor,
    *,
    estimator: KLEstimator = "k3",
    corrected: bool = True,
) -> Tensor:
    """Penalty per token whose expected gradient is that of KL(pi || reference).

    An estimate of the divergence, differentiated by itself, does not give its gradient: k1 gives
    nothing at all and k3 the gradient of the *forward* divergence, because the policy that the
    samples come from is not differentiated. Weighted by the probability ratio, through which the
    gradient flows too, both are right. k2 gives the right gradient as it is, so its ratio only
    makes up for a policy that has moved since it sampled.

    Args:
        logprobs: Of the policy, (B, T).
        reference_logprobs: Of the frozen reference, (B, T).
        old_logprobs: Of the policy that sampled, (B, T).
        estimator: See `kl_estimate`.
        corrected: False differentiates the plain estimate, as the paper of GRPO does.
    """
    estimate = kl_estimate(logprobs, reference_logprobs, estimator)
    if not corrected:
        return estimate
    ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return (ratio.detach() if estimator == "k2" else ratio) * estimate
