"""A key-value cache that knows in advance how long it will become.

Without gradients, a layer of it is allocated once and written in place; the cache of transformers
is copied whole for each token, which took a tenth of the time of a decoding step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from astra_rl.models.attention import SHORT_ATTENTION


class RoomyLayer(DynamicLayer):
    """Keys and values of one attention layer, (B, heads, tokens, size), with room to grow.

    Args:
        capacity: So many tokens are made room for; more are taken, at the price of a copy.
        whole: Give the attention the room too, hidden by the mask. Matrix products are slow on a
            slice of it; but only attention that is chosen by name, and its masks, know the size.
    """

    def __init__(self, capacity: int, *, whole: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.whole = whole
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens and return those of all."""
        if torch.is_grad_enabled():  # what is written in place cannot be differentiated
            self._buffers = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.contents
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self.capacity:
            self.capacity = max(self.capacity, end)
            self._buffers = (
                self._with_room(keys, key_states, start),
                self._with_room(values, value_states, start),
            )
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self._buffers if self.whole else self.contents

    @property
    def contents(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def restore(self, keys: Tensor, values: Tensor) -> None:
        """Go on from keys and values of another layer; they are copied before they are changed."""
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys `update` will return, and the position of the first."""
        length, offset = super().get_mask_sizes(query_length)
        is_whole = self.whole and not torch.is_grad_enabled()
        return (max(length, self.capacity) if is_whole else length), offset

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, which may repeat."""
        if self._buffers is None:
            super().batch_select_indices(indices)
            return
        length = self.get_seq_length()
        keys, values = self._buffers
        self._buffers = keys.index_select(0, indices), values.index_select(0, indices)
        self._show(length)

    def _with_room(self, old: Tensor, new: Tensor, length: int) -> Tensor:
        rows, heads, _, size = new.shape
        # Zeros: what is hidden is multiplied by zero, and must not be NaN.
        buffer = new.new_zeros(rows, heads, self.capacity, size)
        if length:
            buffer[:, :, :length] = old
        return buffer

    def _show(self, length: int) -> None:
        assert self._buffers is not None
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def roomy_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """Return an empty cache for `model` whose full-attention layers have room for `capacity`."""
    cache = DynamicCache(config=model.config)
    whole = model.config._attn_implementation == SHORT_ATTENTION
    cache.layers = [
        RoomyLayer(capacity, whole=whole) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache
