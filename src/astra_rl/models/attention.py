"""Attention for short sequences in half precision on the CPU.

The fused attention kernel of torch is optimised for long sequences. On the CPU, in half precision
and for the sequence lengths of red-teaming turns, its overhead dominates: two plain matrix products
are 2 to 7 times as fast (`docs/performance.md`). With grouped-query attention, the queries of a
group are treated as one longer query, so keys and values are not repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHORT_ATTENTION = "astra_rl_short"
"""Name of this implementation in the attention registry of transformers."""

GROUPED_ATTENTION = "astra_rl_grouped"
"""Name of `grouped_attention` in the attention registry of transformers."""

MAX_SCORES = 2**24
"""Maximum number of attention scores per layer; above it the fused kernel is used.

The fused kernel never materialises all scores. Here they are kept for the backward pass, at 2 to 8
bytes each, and would become the largest tensors of the model.
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
    """Scaled dot-product attention, with the signature of transformers' attention functions.

    Full precision, other devices, dropout, long sequences and unusual masks use the fused kernel.

    Args:
        module: The attention layer.
        query: (B, heads, Q, head size).
        key: (B, key heads, L, head size).
        value: (B, key heads, L, value head size).
        attention_mask: (B, 1, Q, L), True (boolean mask) or 0 (additive mask) where a query attends
            to a key; None is causal.
        dropout: Dropout probability of the attention weights.
        scaling: Factor of the scores; None is ``head_size ** -0.5``.
        is_causal: Whether to apply a causal mask if `attention_mask` is None; None uses the
            attribute of `module`.
        kwargs: Further arguments of some model families. Those that change the result are passed to
            the fused kernel.

    Returns:
        Output, (B, Q, heads, value head size), and None in place of the attention weights.
    """
    rows, heads, length, size = query.shape
    if (
        query.device.type != "cpu"
        or query.dtype.itemsize != 2
        or dropout
        or rows * heads * length * key.shape[2] > MAX_SCORES
        or _changes_result(kwargs)
        or (attention_mask is not None and attention_mask.shape[1] != 1)
    ):
        return grouped_attention(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
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
        scores = _apply_mask(scores.view(*grouped, seen), attention_mask.unsqueeze(2))
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    output = weights.view(rows, key_heads, -1, seen) @ value
    return output.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None


def grouped_attention(
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
    """Fused attention that shares keys and values among the query heads of a group.

    With a mask, transformers copies them for each query head, and the backward pass keeps the
    copies. For arguments and result see `short_attention`.
    """
    if (
        query.device.type != "cpu"
        or query.shape[2] == 1
        or attention_mask is None
        or _changes_result(kwargs)
    ):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


def _changes_result(options: Mapping[str, Any]) -> bool:
    """Whether there is an argument that only the function of transformers handles."""
    return any(options.get(name) is not None for name in ("position_bias", "softcap", "cache"))


def _apply_mask(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return scores + mask
    # Finite, so that a fully masked row (a padded query) does not become NaN.
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


for _name, _function in (
    (SHORT_ATTENTION, short_attention),
    (GROUPED_ATTENTION, grouped_attention),
):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Switch a CPU model to one of these functions, if its family allows it.

    In half precision that is `short_attention`, else `grouped_attention`.
    """
    if (
        model.device.type == "cpu"
        and model.config._attn_implementation == "sdpa"
        and model._can_set_attn_implementation()
    ):
        is_half = model.dtype.itemsize == 2
        model.set_attn_implementation(SHORT_ATTENTION if is_half else GROUPED_ATTENTION)


@contextlib.contextmanager
def fused_attention(model: PreTrainedModel) -> Iterator[None]:
    """Context in which a model uses the fused attention kernel, as a reference implementation."""
    before = model.config._attn_implementation
    if before not in (SHORT_ATTENTION, GROUPED_ATTENTION):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
