"""What a model has read of conversations that go on, so that a turn reads only what is new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from astra_rl.models.kv_cache import RoomyLayer, roomy_cache

MAX_MEMORY_BYTES = 256 * 2**20
"""Keys and values kept per model at most; the oldest are forgotten first."""


@dataclass(frozen=True)
class _Entry:
    """A batch of texts that were read together."""

    rows: dict[tuple[int, ...], int]
    lengths: list[int]
    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor

    @property
    def size(self) -> int:
        return sum(part.untyped_storage().nbytes() for layer in self.layers for part in layer)

    def longest(self, sequence: Sequence[int]) -> tuple[int, int]:
        """Return the row of the longest text that `sequence` begins with, and its length."""
        for length in self.lengths:
            row = self.rows.get(tuple(sequence[:length])) if length <= len(sequence) else None
            if row is not None:
                return row, length
        return -1, 0


@dataclass(frozen=True)
class Recalled:
    """Where sequences can go on from.

    Attributes:
        entry: Texts that were read before.
        rows: For each sequence, the text that it begins with; -1 if it begins with none of them.
        lengths: For each sequence, how many of its tokens that are.
    """

    entry: _Entry
    rows: list[int]
    lengths: list[int]

    def cache(self, model: PreTrainedModel, room: int) -> DynamicCache:
        """Return the keys and values of the texts, with room for so many more tokens."""
        cache = roomy_cache(model, self.entry.mask.shape[1] + room)
        for layer, contents in zip(cache.layers, self.entry.layers, strict=True):
            assert isinstance(layer, RoomyLayer)
            layer.restore(*contents)
        return cache

    @property
    def mask(self) -> Tensor:
        """Which cached positions are real, (texts + 1, L), int64; the last row knows nothing."""
        mask = self.entry.mask
        return torch.cat([mask, mask.new_zeros(1, mask.shape[1])])


class ConversationCache:
    """Remembers what was read, for as long as the weights of the model stay as they are."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def remember(
        self, sequences: Sequence[Sequence[int]], cache: DynamicCache, mask: Tensor
    ) -> None:
        """Keep what a batch has read, if its layers can be continued from any point.

        Args:
            sequences: Token ids of each row, all of them read.
            cache: Their keys and values; what is appended to it later does no harm.
            mask: Which positions are real, (B, L), int64.
        """
        layers = [layer for layer in cache.layers if isinstance(layer, RoomyLayer)]
        if len(layers) < len(cache.layers) or not all(layer.is_initialized for layer in layers):
            return
        rows = {tuple(sequence): row for row, sequence in enumerate(sequences)}
        lengths = sorted({len(sequence) for sequence in rows}, reverse=True)
        kept = [layer.contents for layer in layers]
        self._entries.append(_Entry(rows, lengths, kept, mask))
        while self._entries and sum(entry.size for entry in self._entries) > MAX_MEMORY_BYTES:
            self._entries.pop(0)

    def forget(self) -> None:
        """Let go of everything, for instance because memory is short; it will be read again."""
        self._entries.clear()

    def recall(self, sequences: Sequence[Sequence[int]]) -> Recalled | None:
        """Find texts that the sequences begin with; None if that saves less than half of the work.

        Args:
            sequences: Token ids of each row.
        """
        candidates = [
            (entry, [entry.longest(sequence) for sequence in sequences]) for entry in self._entries
        ]
        if not candidates or not all(sequences):  # nothing cannot be read
            return None
        entry, found = max(candidates, key=lambda each: sum(length for _, length in each[1]))
        rows, lengths = [row for row, _ in found], [length for _, length in found]
        return Recalled(entry, rows, lengths) if 2 * sum(lengths) >= _size(sequences) else None


def _size(sequences: Sequence[Sequence[int]]) -> int:
    return sum(map(len, sequences))
