"""Losses as pure functions of tensors.

Shapes: B rows, T tokens. Everything is float32. Padding is excluded by a mask and never enters a
mean; `torch.where` and not a product removes it, because zero times NaN is NaN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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


def dpo_loss(margin: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation, per pair (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    Args:
        margin: (B,), how much more the policy than the reference prefers the chosen text:
            ``(log pi(chosen) - log pi(rejected)) - (log ref(chosen) - log ref(rejected))``.
        beta: Strength of the tie to the reference, positive.
    """
    return -F.logsigmoid(beta * margin)


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """Identity preference optimisation, per pair (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    Args:
        margin: (B,), as for `dpo_loss`. Its authors use mean log-probabilities per token.
        beta: The target margin is ``1 / (2 * beta)``; positive.
    """
    return (margin - 1 / (2 * beta)) ** 2


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Clipped surrogate, per token (Schulman et al. 2017, arXiv 1707.06347, eq. 7), to minimise.

    Args:
        logprobs: Of the policy, (B, T).
        old_logprobs: Of the policy that sampled, (B, T), without gradient.
        advantages: (B, 1) or (B, T), without gradient.
        clip_low: The ratio counts down to ``1 - clip_low``.
        clip_high: The ratio counts up to ``1 + clip_high``.
    """
    ratio = probability_ratio(logprobs, old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def probability_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """``pi / pi_old`` per token, safe against overflow."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def kl_penalty(logprobs: Tensor, reference_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Penalty per token whose expected gradient is that of KL(pi || reference).

    The estimator ``k3 = exp(d) - 1 - d`` with ``d = log ref - log pi`` (Schulman 2020,
    *Approximating KL divergence*) is non-negative and has little variance, but differentiated by
    itself it gives the gradient of the *forward* divergence. Weighted by the probability ratio,
    through which the gradient flows too, it gives the right one.
    """
    difference = (reference_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    k3 = difference.exp() - 1 - difference
    return probability_ratio(logprobs, old_logprobs) * k3
