"""Key-value cache that is allocated once for its final length.

Without gradients, keys and values are written in place. The dynamic cache of transformers is copied
for each token, which took a tenth of the time of a decoding step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from astra_rl.models.attention import SHORT_ATTENTION


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one attention layer, (B, heads, tokens, head size).

    Args:
        capacity: Number of tokens to allocate for. A longer sequence reallocates and copies.
        return_padded: Whether `update` returns the whole allocation instead of a slice of the used
            part. Matrix products on the slice are slow, but only attention functions with a
            registered mask function know the size of the allocation.
    """

    def __init__(self, capacity: int, *, return_padded: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.return_padded = return_padded
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._slot: Tensor | None = None

    def write_at(self, slot: Tensor) -> int:
        """Write each further token at a position that the device counts, and return all positions.

        Only without gradients, after tokens were written. `update` returns the whole allocation
        from then on.

        Args:
            slot: Position of the next token, (1,), int64; the caller increments it in place.

        Returns:
            Number of positions that are allocated.
        """
        assert self._buffers is not None
        self._slot = slot
        return self._buffers[0].shape[2]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens and return those of all tokens."""
        if torch.is_grad_enabled():  # in-place writes are not differentiable
            self._buffers = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._slot is not None:
            assert self._buffers is not None
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer.index_copy_(2, self._slot, states)
            return self._buffers
        keys, values = self.keys_and_values
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self.capacity:
            self.capacity = max(self.capacity, end)
            self._buffers = (
                self._allocate(keys, key_states, start),
                self._allocate(values, value_states, start),
            )
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._set_used_length(end)
        return self._buffers if self.return_padded and end > 1 else self.keys_and_values

    @property
    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens so far."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def restore(self, keys: Tensor, values: Tensor) -> None:
        """Start from the keys and values of another layer; they are copied on the first write."""
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that `update` will return, and the position of the first."""
        length, offset = super().get_mask_sizes(query_length)
        # For a text of one token, transformers makes no mask that could leave out the rest.
        is_padded = self.return_padded and length > 1 and not torch.is_grad_enabled()
        return (max(length, self.capacity) if is_padded else length), offset

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select rows of the batch; `indices`, (B,) int64, may contain repetitions."""
        if self._buffers is None:
            _select_rows_of_layer(self, indices)
            return
        length = self.get_seq_length()
        keys, values = self._buffers
        self._buffers = repeated(keys, indices), repeated(values, indices)
        self._set_used_length(length)

    def _allocate(self, old: Tensor, new: Tensor, length: int) -> Tensor:
        rows, heads, _, size = new.shape
        # Zeros, because masked positions are multiplied by zero and must not be NaN.
        buffer = new.new_zeros(rows, heads, self.capacity, size)
        if length:
            buffer[:, :, :length] = old
        return buffer

    def _set_used_length(self, length: int) -> None:
        assert self._buffers is not None
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def preallocated_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """Return an empty cache whose full-attention layers are allocated for `capacity` tokens."""
    cache = DynamicCache(config=model.config)
    return_padded = model.config._attn_implementation == SHORT_ATTENTION
    cache.layers = [
        PreallocatedLayer(capacity, return_padded=return_padded)
        if type(layer) is DynamicLayer
        else layer
        for layer in cache.layers
    ]
    return cache


def select_rows(kv_cache: DynamicCache, rows: Tensor) -> None:
    """Keep these rows of a cache, with gradients that are the same in each run.

    Args:
        kv_cache: Changed in place.
        rows: Rows of the batch, (B,) int64; they may repeat.
    """
    layers: list[Any] = kv_cache.layers
    for layer in layers:
        # Layers that hold more than keys and values select it themselves.
        if type(layer).batch_select_indices is DynamicLayer.batch_select_indices:
            _select_rows_of_layer(layer, rows)
        else:
            layer.batch_select_indices(rows)


def _select_rows_of_layer(layer: Any, rows: Tensor) -> None:
    if layer.get_seq_length() > 0:
        layer.keys, layer.values = repeated(layer.keys, rows), repeated(layer.values, rows)


def repeated(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a tensor, some of them repeatedly; the order of sums in its gradient is fixed.

    On the CPU, several threads add up the gradients of ``tensor[rows]`` in an order that differs
    from run to run; on CUDA those of `torch.index_select` do.

    Args:
        tensor: (A, ...).
        rows: Indices of rows, (B,) int64.

    Returns:
        (B, ...).
    """
    return tensor.index_select(0, rows) if tensor.device.type == "cpu" else tensor[rows]
