"""Attention for short texts on the CPU.

The fused kernel of torch is made for long sequences. On the CPU, in half precision and for the
lengths of red-teaming turns, it spends most of its time on the way in and out: two plain matrix
products are 2 to 7 times as fast (`benchmarks/attention.py`). Where key and value heads are shared
by groups of query heads, the queries of a group are read as one longer query, so that keys and
values need not be repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHORT_ATTENTION = "astra_rl_short"
"""What transformers knows this attention by."""

MAX_SCORES = 2**24
"""Above so many attention scores per layer, the fused kernel, which never holds them all, is used.

At 2 to 8 bytes each, kept for the backward pass, they would soon be the largest tensors of all.
"""


def short_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as `scaled_dot_product_attention` does; the signature is that of transformers.

    Args:
        module: The attention layer.
        query: (B, heads, Q, size).
        key: (B, key heads, L, size).
        value: (B, key heads, L, value size).
        attention_mask: True, or zero, where a query may look, (B, 1, Q, L); None is causal.
        dropout: Of the attention weights.
        scaling: Of the scores; None is ``size ** -0.5``.
        is_causal: Whether a query may not look ahead, where there is no mask.
        kwargs: What some families add; those that change the result go to the fused kernel.

    Returns:
        (B, Q, heads, value size), and None for the weights.
    """
    rows, heads, length, size = query.shape
    if (
        query.device.type != "cpu"
        or query.dtype == torch.float32
        or dropout
        or rows * heads * length * key.shape[2] > MAX_SCORES
        or any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "cache"))
        or (attention_mask is not None and attention_mask.shape[1] != 1)
    ):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return output, None
    if attention_mask is None and length > 1:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        key, value = (key[:, :, :length], value[:, :, :length]) if causal else (key, value)
        if causal:
            attention_mask = query.new_ones(length, length, dtype=torch.bool).tril()[None, None]
    key_heads, seen = key.shape[1:3]
    grouped = (rows, key_heads, heads // key_heads, length)
    scaled = query * (size**-0.5 if scaling is None else scaling)
    scores = scaled.reshape(rows, key_heads, -1, size) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = _hide(scores.view(*grouped, seen), attention_mask.unsqueeze(2))
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    output = weights.view(rows, key_heads, -1, seen) @ value
    return output.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None


def _hide(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return scores + mask
    # A finite number: a query of padding may see nothing at all, and must not become NaN.
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


AttentionInterface.register(SHORT_ATTENTION, short_attention)
AttentionMaskInterface.register(SHORT_ATTENTION, sdpa_mask)


def use_short_attention(model: PreTrainedModel) -> None:
    """Let a model on the CPU attend by `short_attention`, if it lets its attention be chosen."""
    if (
        model.device.type == "cpu"
        and model.dtype != torch.float32
        and model.config._attn_implementation == "sdpa"
        and model._can_set_attn_implementation()
    ):
        model.set_attn_implementation(SHORT_ATTENTION)


@contextlib.contextmanager
def fused_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model attend by the fused kernel for a while, to be compared with."""
    if model.config._attn_implementation != SHORT_ATTENTION:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(SHORT_ATTENTION)
