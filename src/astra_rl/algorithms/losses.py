"""Losses as pure functions of tensors.

Shapes: B rows, T tokens. Everything is float32. Padding is excluded by a mask and never enters a
mean; `torch.where` and not a product removes it, because zero times NaN is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_rl.errors import ConfigurationError
from astra_rl.infra.ranges import Positive, Range, check_fields

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
        margin: (B,), the difference of log-ratios to the reference:
            ``(log pi(chosen) - log pi(rejected)) - (log ref(chosen) - log ref(rejected))``.
        beta: Strength of the KL regularisation towards the reference, positive.
        label_smoothing: Assumed probability that a preference is inverted, in [0, 0.5):
            conservative DPO (Mitchell 2023, *A note on DPO with noisy preferences*, eq. 3).
    """
    right, wrong = -F.logsigmoid(beta * margin), -F.logsigmoid(-beta * margin)
    return (1 - label_smoothing) * right + label_smoothing * wrong if label_smoothing else right


def ipo_loss(margin: Tensor, beta: float, gap: Tensor | float = 1.0) -> Tensor:
    """Identity preference optimisation, per pair (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    Args:
        margin: (B,), as for `dpo_loss`. Its authors use mean log-probabilities per token.
        beta: The target margin is ``gap / (2 * beta)``; positive.
        gap: 1, or the difference of rewards of the two texts, (B,) (Guo et al.
            2025, MTSA, arXiv 2505.17147).
    """
    return (margin - gap / (2 * beta)) ** 2


def hinge_loss(margin: Tensor, beta: float) -> Tensor:
    """Hinge loss, per pair (Zhao et al. 2023, SLiC-HF, arXiv 2305.10425, eq. 1, over a reference).

    Args:
        margin: (B,), as for `dpo_loss`.
        beta: The loss of a pair is zero from a margin of ``1 / beta`` on; positive.
    """
    return F.relu(1 - beta * margin)


def simpo_loss(margin: Tensor, beta: float, gamma: float) -> Tensor:
    """Simple preference optimisation, per pair (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    Args:
        margin: (B,), ``log pi(chosen) - log pi(rejected)`` as means per token, without reference.
        beta: Scale of the margin, positive.
        gamma: Target of the scaled margin, not negative.
    """
    return -F.logsigmoid(beta * margin - gamma)


def kto_loss(log_ratio: Tensor, desirable: Tensor, divergence: Tensor, beta: float) -> Tensor:
    """Kahneman-Tversky optimisation, per text (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8).

    Args:
        log_ratio: (B,), ``log pi(text) - log ref(text)``.
        desirable: (B,), bool.
        divergence: (B,) or a scalar, KL(pi || ref) in nats, not negative, without gradient: the
            reference point of gains and losses.
        beta: How fast gains and losses saturate, positive.
    """
    gain = torch.where(desirable, log_ratio - divergence, divergence - log_ratio)
    return 1 - torch.sigmoid(beta * gain)


def balance_residual(logprobs: Tensor, log_rewards: Tensor, log_z: Tensor | float = 0.0) -> Tensor:
    """Residual of trajectory balance per attack, in nats: ``log Z + log pi - log R``, (B,).

    Its square is trajectory balance (Malkin et al. 2022, arXiv 2201.13259, eq. 14, for texts, where
    every state is reached in one way). It is zero for all attacks exactly if pi is R / Z.
    """
    return log_z + logprobs - log_rewards


def contrastive_loss(residual: Tensor, pairs: Tensor, *, huber: float | None = None) -> Tensor:
    """Mean squared difference of the residuals of each pair; zero, with a gradient, without pairs.

    Over all pairs of a batch it is twice the variance of the residuals.

    Args:
        residual: See `balance_residual`, without log Z, (B,).
        pairs: Which rows form a pair, (B, B), bool, each pair once.
        huber: Threshold of the Huber loss (which halves the square), in nats.
    """
    difference = residual[:, None] - residual[None, :]
    error = (
        difference**2
        if huber is None
        else F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=huber)
    )
    return torch.where(pairs, error, torch.zeros_like(error)).sum() / pairs.sum().clamp(min=1)


ClipLow = Annotated[float, Range(gt=0, le=1)]
"""Lower clip bound: the probability ratio is at least 1 - this, so not below 0."""
ClipHigh = Annotated[float, Range(gt=0, finite=False)]
"""Upper clip bound: the probability ratio is at most 1 + this; infinity does not clip."""
Surrogate = Literal["clip", "cispo", "reinforce"]
RatioLevel = Literal["token", "sequence_mean", "sequence_sum"]
Reduction = Literal["token", "sequence", "sequence_sum"]


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """Configuration of the policy-gradient loss.

    Attributes:
        surrogate: ``"clip"`` is PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347,
            eq. 7); ``"cispo"`` multiplies the log-probability by the clipped ratio, without
            gradient through the ratio (MiniMax 2025, arXiv 2506.13585, eq. 4), so that every token
            keeps a gradient; ``"reinforce"`` has no ratio and assumes on-policy samples.
        ratio: ``"token"``, the ratio of each token; ``"sequence_mean"``, the geometric mean over
            the attack (Zheng et al. 2025, GSPO, arXiv 2507.18071, eq. 7); ``"sequence_sum"``, the
            product over the attack.
        clip_low: Lower clip bound, in (0, 1]: ratio >= 1 - clip_low; not used by ``"cispo"``.
        clip_high: Upper clip bound: ratio <= 1 + clip_high.
        reduce: ``"token"`` is the mean over tokens (Yu et al. 2025, DAPO, arXiv 2503.14476);
            ``"sequence"`` the mean over attacks of their means (Shao et al. 2024, GRPO, arXiv
            2402.03300); ``"sequence_sum"`` the mean over attacks of their sums.
        divisor: Constant divisor of ``"sequence_sum"``: the maximum number of tokens of an attack
            (Liu et al. 2025, Dr. GRPO, arXiv 2503.20783).

    Raises:
        ConfigurationError: A value is out of range.
    """

    surrogate: Surrogate = "clip"
    ratio: RatioLevel = "token"
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    reduce: Reduction = "token"
    divisor: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        values = vars(self)
        choices = {"surrogate": Surrogate, "ratio": RatioLevel, "reduce": Reduction}
        for name, allowed in choices.items():
            if values[name] not in get_args(allowed):
                raise ConfigurationError(
                    f"{name}={values[name]!r}; choose from {list(get_args(allowed))}."
                )


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, kind: PolicyLoss
) -> Tensor:
    """Loss of each token, (B, T), to be minimised after `reduce_tokens`.

    Args:
        logprobs: Of the policy, (B, T).
        old_logprobs: Of the policy that sampled, (B, T), without gradient.
        advantages: (B, 1) or (B, T), without gradient.
        mask: Real tokens, (B, T), bool.
        kind: Configuration of the loss.
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
    """Return masks of the tokens clipped below and above, both in the shape of the ratio.

    The gradient of such a token is zero under ``"clip"``, and bounded under ``"cispo"``.
    """
    low = (ratio < 1 - kind.clip_low) & (advantages < 0) & (kind.surrogate == "clip")
    high = (ratio > 1 + kind.clip_high) & (advantages > 0) & (kind.surrogate != "reinforce")
    return low, high


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Half the squared error of each estimate, clipped; in the shape of `values`.

    The maximum of the error of the estimate and the error of the estimate clipped to within `clip`
    of its old value (Schulman et al., baselines' PPO2; Huang et al. 2022, *The 37 implementation
    details of PPO*, detail 9).

    Args:
        values: Estimates, with gradient.
        old_values: Estimates before the update.
        returns: Targets.
        clip: Clip range, positive; infinity does not clip.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def reduce_tokens(
    values: Tensor, mask: Tensor, weights: Tensor, *, reduce: Reduction, divisor: float = 1.0
) -> Tensor:
    """Reduce the values of tokens to a scalar; zero, with zero gradient, if there are none.

    Args:
        values: (B, T).
        mask: Real tokens, (B, T), bool.
        weights: Weights of the rows, (B,); they multiply the values, but are no part of the
            denominator. Scale them to a mean of 1 over an experience, see `normalised`.
        reduce: See `PolicyLoss`.
        divisor: See `PolicyLoss`.
    """
    kept = torch.where(mask, values, torch.zeros_like(values)) * weights[:, None]
    if reduce == "token":
        return kept.sum() / mask.sum().clamp(min=1)
    counts = mask.sum(dim=1).clamp(min=1)
    rows = kept.sum(dim=1) / (counts if reduce == "sequence" else divisor)
    return rows.sum() / max(len(rows), 1)


KLEstimator = Literal["k1", "k2", "k3"]
KLGradient = Literal["token", "sequence"]


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
    gradient: KLGradient = "token",
) -> Tensor:
    """Penalty per token whose expected gradient is one of KL(pi || reference), (B, T).

    The gradient of an estimate is not an estimate of the gradient, because the sampling policy is
    not differentiated: in expectation the gradient of k1 is zero, and that of k3 is the gradient of
    the *forward* KL. A probability ratio with gradient corrects this. Which tokens the ratio covers
    decides of what the sum over tokens is the gradient:

    - ``"token"``: the ratio of the token itself. The gradient is that of the KL of each token given
      the tokens before it, whose distribution is held fixed. It is the gradient of the KL of the
      text for texts of one token only: it omits that a token changes the KL of later ones. k2
      has this gradient on-policy; its ratio, without gradient, corrects for a policy that has
      changed since it sampled.
    - ``"sequence"``: the ratio of the token and all tokens before it. The expectation of the sum is
      KL(pi || reference) of the text, and its gradient is exact: each token's log-probability is
      multiplied by the estimates of itself and of all later tokens (Tang and Munos 2025, arXiv
      2506.09477). Exact for any policy that sampled; of higher variance.

    Args:
        logprobs: Of the policy, (B, T).
        reference_logprobs: Of the frozen reference, (B, T).
        old_logprobs: Of the policy that sampled, (B, T).
        estimator: See `kl_estimate`.
        corrected: Whether to multiply by the ratio; False is the plain estimate, as in the GRPO
            paper.
        gradient: See above. ``"sequence"`` needs the ratio, and k1 or k3: the mean of k2 is not
            the KL.
    """
    estimate = kl_estimate(logprobs, reference_logprobs, estimator)
    if not corrected:
        return estimate
    log_ratio = logprobs - old_logprobs
    if gradient == "sequence":
        log_ratio = log_ratio.cumsum(dim=-1)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return (ratio.detach() if estimator == "k2" else ratio) * estimate
