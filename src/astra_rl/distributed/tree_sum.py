"""Sum of tensors in a fixed binary tree, so that its last bits do not depend on who adds what."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from astra_rl.distributed.parts import owner
from astra_rl.distributed.ranks import Ranks

Leaf = Callable[[int], Tensor]
"""Computes a leaf of the tree, by its number."""


class TreeSum:
    """Adds the leaves 0, 1, ... of all processes: each half of the leaves, then both sums.

    A process computes the subtrees of which it owns all leaves, then the processes exchange the
    sums of these. At most one tensor per level of the tree is in memory.

    Args:
        ranks: The processes.
        count: Number of leaves; at least 1.
    """

    def __init__(self, ranks: Ranks, count: int) -> None:
        self.ranks, self.count = ranks, count
        self._sums: dict[tuple[int, int], Tensor] = {}

    def compute(self, leaf: Leaf) -> None:
        """Compute the subtrees of this process; nothing is exchanged."""
        self._compute(leaf, 0, self.count)

    def exchange(self, like: Tensor) -> Tensor:
        """Return the sum of all leaves, in every process.

        Args:
            like: A tensor of the shape, dtype and device of the leaves; it is overwritten.
        """
        found = self._exchange(0, self.count, like)
        result = like if found is None else found
        self.ranks.broadcast(result)
        return result

    def _owner(self, low: int, high: int) -> int | None:
        """Return the process that owns all leaves of a subtree; None if there are several."""
        first, last = (owner(leaf, self.count, self.ranks.size) for leaf in (low, high - 1))
        return first if first == last else None

    def _compute(self, leaf: Leaf, low: int, high: int) -> None:
        process = self._owner(low, high)
        if process is None:
            middle = (low + high) // 2
            self._compute(leaf, low, middle)
            self._compute(leaf, middle, high)
        elif process == self.ranks.rank:
            self._sums[low, high] = _sum(leaf, low, high)

    def _exchange(self, low: int, high: int, like: Tensor) -> Tensor | None:
        """Return the sum of a subtree in the process that owns its first leaf, else None."""
        if self._owner(low, high) is not None:
            return self._sums.pop((low, high), None)
        middle = (low + high) // 2
        left, right = self._exchange(low, middle, like), self._exchange(middle, high, like)
        to, source = (owner(leaf, self.count, self.ranks.size) for leaf in (low, middle))
        if to != source:
            if right is not None:
                self.ranks.send(right, to)
                return None
            if self.ranks.rank == to:
                self.ranks.receive(like, source)
                right = like
        if left is None or right is None:
            return None
        return left.add_(right)


def _sum(leaf: Leaf, low: int, high: int) -> Tensor:
    if high - low == 1:
        return leaf(low)
    middle = (low + high) // 2
    left = _sum(leaf, low, middle)
    return left.add_(_sum(leaf, middle, high))
