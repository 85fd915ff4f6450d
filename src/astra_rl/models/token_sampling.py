"""Sampling of one token per row from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from astra_rl.errors import ModelError
from astra_rl.models.settings import Sampling


def sample_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sample one token per row by inverting its cumulative distribution.

    Args:
        logits: (B, V), float32.
        uniforms: Uniform random numbers in [0, 1), (B,), float32.
        sampling: Temperature and truncation.

    Returns:
        Tokens, (B,) int64, and their natural log-probabilities, (B,) float32, under the sampling
        distribution; zeros for greedy decoding.

    Raises:
        ModelError: The largest logit of a row is not finite.
    """
    tokens, logprobs = sample_unchecked(logits, uniforms, sampling)
    check_finite(logprobs)
    return tokens, logprobs


def sample_unchecked(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """`sample_tokens` without waiting for the device.

    The log-probability is NaN, and the token any of the vocabulary, if the largest logit of a row
    is not finite.
    """
    top = logits.amax(dim=-1, keepdim=True)
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, (top - top).squeeze(1)
    scores = logits - top
    if sampling.temperature != 1:
        scores /= sampling.temperature
    weights = _truncate(scores, sampling).exp_()
    tokens, total = _sample_from_weights(weights, uniforms)
    return tokens, (weights.gather(1, tokens[:, None]).squeeze(1) / total).log()


def check_finite(logprobs: Tensor) -> None:
    """Raise unless all logits were finite that these log-probabilities are of.

    Raises:
        ModelError: A log-probability is NaN.
    """
    if logprobs.isnan().any():
        raise ModelError(
            "the model's logits are not finite. Check its weights for NaN, and its dtype: "
            "float16 overflows where bfloat16 and float32 do not."
        )


BLOCK = 256
"""Block size of the two-stage cumulative sum: blocks first, then the tokens of one block."""


def _sample_from_weights(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Sample a token from each row of unnormalised weights, (B, V).

    Returns the tokens, (B,), and the total weight of each row, (B,).
    """
    vocabulary = weights.shape[1]
    whole = vocabulary // BLOCK * BLOCK
    sums = weights[:, :whole].reshape(len(weights), whole // BLOCK, BLOCK).sum(dim=2)
    cumulative = torch.cat([sums, weights[:, whole:].sum(dim=1, keepdim=True)], 1).cumsum(dim=1)
    total = cumulative[:, -1]
    blocks, before = _invert(cumulative, uniforms * total)
    columns = blocks[:, None] * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, columns.clamp(max=vocabulary - 1))
    inside = inside.masked_fill(columns >= vocabulary, 0).cumsum(dim=1)
    offsets, _ = _invert(inside, uniforms * total - before)
    # Weights that are not numbers have no place in an order.
    return (blocks * BLOCK + offsets).clamp(max=vocabulary - 1), total


def _invert(cumulative: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index whose cumulative weight exceeds the draw, and the weight before it."""
    # Rounding must not push a draw to the total weight, where no token has probability left.
    total = cumulative[:, -1:]
    draws = torch.minimum(draws[:, None], torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, draws.clamp(min=0), right=True)
    index = index.clamp(max=cumulative.shape[1] - 1)
    before = cumulative.gather(1, (index - 1).clamp(min=0)).masked_fill(index == 0, 0)
    return index.squeeze(1), before.squeeze(1)


def _truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # A token is kept if the tokens before it do not reach top_p; the first is always kept.
        drop = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
    return logits
