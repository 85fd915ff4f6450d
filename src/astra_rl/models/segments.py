"""Computation of token sequences in segments, each appended to a key-value cache.

Segments are padded on the right, padding is always masked, and position ids are always explicit, so
models with absolute (GPT-2) and rotary positions compute each token at its own position.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from astra_rl.models.attention import SHORT_ATTENTION
from astra_rl.models.conversation_cache import CachedPrefixes
from astra_rl.models.kv_cache import preallocated_cache, select_rows
from astra_rl.models.prefix_plan import Level


@dataclass
class ForwardOutput:
    """Result of a shared-prefix forward pass of B sequences.

    Attributes:
        kv_cache: Key-value cache of all rows, prefix and suffix segments, padding included.
        mask: 1 for real, 0 for padded cache positions, (B, prefix + suffix), int64.
        lengths: Number of real tokens per row, (B,), int64.
        suffix_starts: Position in the sequence of each row's first suffix token, (B,), int64.
        states: Last hidden states of the segments of each level, (segments, width, H).
        is_padded: Whether some cache positions may be padded.
    """

    kv_cache: DynamicCache
    mask: Tensor
    lengths: Tensor
    suffix_starts: Tensor
    states: list[Tensor]
    is_padded: bool

    @property
    def hidden(self) -> Tensor:
        """Last hidden states of the suffix segments, (B, S, H)."""
        return self.states[-1]


def forward_levels(
    model: PreTrainedModel,
    levels: Sequence[Level],
    *,
    reserve: int = 0,
    cached: CachedPrefixes | None = None,
) -> ForwardOutput:
    """Run the backbone on segments, level by level.

    Args:
        model: A causal language model.
        levels: Segments of each level, and the rows of the level before that they continue.
        reserve: Number of tokens by which each row will be continued.
        cached: Keys and values that the first level continues; None if it starts the text.
    """
    device = model.device
    capacity = reserve + sum(level.width for level in levels)
    if cached is None:
        kv_cache = preallocated_cache(model, capacity)
        mask = torch.zeros(0, 0, dtype=torch.long, device=device)
    else:
        kv_cache, mask = cached.kv_cache(model, capacity), cached.mask
    states = []
    is_padded = cached is not None and min(cached.lengths) < mask.shape[1]
    for level in levels:
        if level.parents is not None:
            rows = torch.tensor(level.parents, device=device)
            select_rows(kv_cache, rows.clamp(min=0))
            mask = mask[rows]  # -1 selects the last row of `CachedPrefixes.mask`, which is empty
        ids, segment_mask = pad_right(level.segments, device)
        starts = torch.tensor(level.starts, device=device)
        # Padding could exceed a table of absolute positions, so its position is set to 0.
        positions = (starts[:, None] + torch.arange(ids.shape[1], device=device)) * segment_mask
        mask = segment_mask if level.parents is None else torch.cat([mask, segment_mask], dim=1)
        is_padded |= min(map(len, level.segments)) < level.width
        states.append(hidden_states(model, ids, mask if is_padded else None, positions, kv_cache))
    return ForwardOutput(kv_cache, mask, mask.sum(dim=1), starts, states, is_padded)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (B, longest row), int64; padding has id 0 and mask 0."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device)


def backbone(model: Any) -> nn.Module:
    """Return a causal language model without its head, adapters included."""
    inner = unwrap_peft(model)
    prefix = inner.base_model_prefix
    # Llama 4 as a text model names a part that only the multimodal model has.
    body: nn.Module = getattr(inner, prefix if hasattr(inner, prefix) else "model")
    return body


def unwrap_peft(model: Any) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None,
    positions: Tensor,
    kv_cache: DynamicCache,
) -> Tensor:
    """Run the backbone on one segment and append it to the key-value cache.

    Args:
        model: A causal language model.
        ids: Token ids of the segment, (B, S), int64.
        mask: Mask of the cached positions and the segment, (B, cached + S), int64; None if none is
            padded, so that attention can use kernels without a mask, and the mask need not be read
            to find that out.
        positions: Position ids of the segment, (B, S), int64.
        kv_cache: Extended in place.

    Returns:
        Last hidden states, (B, S, H).
    """
    if mask is None and model.config._attn_implementation == SHORT_ATTENTION:
        # Its cache returns positions that are not written yet, which only a mask leaves out.
        mask = ids.new_ones(len(ids), kv_cache.get_seq_length() + ids.shape[1])
    body = backbone(model)
    output = body(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        **{_cache_keyword(type(body).forward): kv_cache},
    )
    last: Tensor = output.last_hidden_state
    return last


@functools.cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    """Return the name of the cache: transformers 5.24 renamed it in its own models."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
