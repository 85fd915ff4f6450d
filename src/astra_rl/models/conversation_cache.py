"""Prefix cache of multi-turn conversations: a turn computes only the tokens added since the last.

The counterpart of automatic prefix caching in inference servers, for the lifetime of one rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from astra_rl.models.kv_cache import PreallocatedLayer, preallocated_cache

MAX_CACHE_BYTES = 2**30
"""Maximum size of the keys and values kept per model, in bytes; the oldest batch is evicted."""


@dataclass(frozen=True)
class _CachedBatch:
    """Keys and values of sequences that were computed in one batch."""

    rows: dict[tuple[int, ...], int]
    lengths: list[int]
    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor

    @property
    def size(self) -> int:
        return sum(part.untyped_storage().nbytes() for layer in self.layers for part in layer)

    def longest_prefix(self, sequence: Sequence[int]) -> tuple[int, int]:
        """Return the row and length of the longest cached prefix of `sequence`; (-1, 0) if none."""
        for length in self.lengths:
            row = self.rows.get(tuple(sequence[:length])) if length <= len(sequence) else None
            if row is not None:
                return row, length
        return -1, 0


@dataclass(frozen=True)
class CachedPrefixes:
    """The cached prefix of each sequence of a batch.

    Attributes:
        batch: The cached batch that holds them.
        rows: For each sequence, the row of `batch` with its prefix; -1 for none.
        lengths: For each sequence, the number of its tokens that are cached.
    """

    batch: _CachedBatch
    rows: list[int]
    lengths: list[int]

    def kv_cache(self, model: PreTrainedModel, reserve: int) -> DynamicCache:
        """Return the keys and values, in a cache with capacity for `reserve` more tokens."""
        cache = preallocated_cache(model, self.batch.mask.shape[1] + reserve)
        for layer, keys_and_values in zip(cache.layers, self.batch.layers, strict=True):
            assert isinstance(layer, PreallocatedLayer)
            layer.restore(*keys_and_values)
        return cache

    @property
    def mask(self) -> Tensor:
        """1 for real cache positions, (cached rows + 1, L), int64; the last row is all zero."""
        mask = self.batch.mask
        return torch.cat([mask, mask.new_zeros(1, mask.shape[1])])


class ConversationCache:
    """Keys and values of conversations, valid while the model's weights do not change."""

    def __init__(self) -> None:
        self._batches: list[_CachedBatch] = []

    def store(
        self, sequences: Sequence[Sequence[int]], kv_cache: DynamicCache, mask: Tensor
    ) -> None:
        """Add the keys and values of a batch.

        Nothing is stored if a layer of the cache cannot be continued from an arbitrary position.

        Args:
            sequences: Token ids of each row.
            kv_cache: Their keys and values; tokens appended to it later do not change the entry.
            mask: 1 for real cache positions, (B, L), int64.
        """
        layers = [layer for layer in kv_cache.layers if isinstance(layer, PreallocatedLayer)]
        if len(layers) < len(kv_cache.layers) or not all(layer.is_initialized for layer in layers):
            return
        rows = {tuple(sequence): row for row, sequence in enumerate(sequences)}
        lengths = sorted({len(sequence) for sequence in rows}, reverse=True)
        kept = [layer.keys_and_values for layer in layers]
        self._batches.append(_CachedBatch(rows, lengths, kept, mask))
        while self._batches and sum(batch.size for batch in self._batches) > MAX_CACHE_BYTES:
            self._batches.pop(0)

    def clear(self) -> None:
        """Drop all entries, for example to free memory; they are recomputed when needed."""
        self._batches.clear()

    def lookup(self, sequences: Sequence[Sequence[int]]) -> CachedPrefixes | None:
        """Find cached prefixes of the sequences.

        Args:
            sequences: Token ids of each row.

        Returns:
            The prefixes in the batch that covers most tokens; None if it covers less than half.
        """
        candidates = [
            (batch, [batch.longest_prefix(sequence) for sequence in sequences])
            for batch in self._batches
        ]
        if not candidates or not all(sequences):  # an empty sequence has no forward pass
            return None
        batch, found = max(candidates, key=lambda each: sum(length for _, length in each[1]))
        rows, lengths = [row for row, _ in found], [length for _, length in found]
        covered, total = sum(lengths), sum(map(len, sequences))
        return CachedPrefixes(batch, rows, lengths) if 2 * covered >= total else None
