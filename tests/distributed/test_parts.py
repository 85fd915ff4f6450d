"""The division of work depends on the number of parts, and covers everything once."""

from __future__ import annotations

import threading
from collections import defaultdict
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from astra_rl.distributed.parts import owner, spans
from astra_rl.distributed.ranks import Ranks
from astra_rl.distributed.tree_sum import TreeSum

SMALL = st.integers(1, 9)


@given(st.integers(0, 30), SMALL)
def test_spans_cover_all_items_evenly(count: int, parts: int) -> None:
    found = spans(count, parts)
    assert [item for span in found for item in span] == list(range(count))
    assert len(found) == min(count, parts)
    sizes = [len(span) for span in found] or [0]
    assert max(sizes) - min(sizes) <= 1


@given(SMALL, SMALL)
def test_neighbouring_parts_have_one_owner_and_the_first_is_of_process_0(
    parts: int, processes: int
) -> None:
    owners = [owner(part, parts, processes) for part in range(parts)]
    assert owners == sorted(owners)
    assert owners[0] == 0
    assert owners[-1] < processes
    counts = [owners.count(process) for process in range(processes)]
    assert max(counts) - min(counts) <= 1


class Threads(Ranks):
    """Processes that are threads, connected by queues."""

    def __init__(self, rank: int, size: int, queues: Any) -> None:
        self.rank, self.size, self.queues = rank, size, queues

    def send(self, tensor: Tensor, to: int) -> None:
        self.queues[self.rank, to].put(tensor.clone())

    def receive(self, tensor: Tensor, source: int) -> None:
        tensor.copy_(self.queues[source, self.rank].get(timeout=300))

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        for to in range(self.size):
            if self.rank == source and to != source:
                self.queues[source, to].put(tensor.clone())
        if self.rank != source:
            tensor.copy_(self.queues[source, self.rank].get(timeout=300))


def tree(values: list[float]) -> float:
    """The sum in the fixed tree, by its definition."""
    if len(values) == 1:
        return values[0]
    middle = len(values) // 2
    return tree(values[:middle]) + tree(values[middle:])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_the_sum_is_that_of_the_tree_for_any_number_of_processes(count: int, size: int) -> None:
    values = [float(f"1e{7 * (leaf % 3)}") + leaf / 3 for leaf in range(count)]
    queues: Any = defaultdict(SimpleQueue)
    for pair in [(a, b) for a in range(size) for b in range(size)]:
        _ = queues[pair]
    found: list[float | None] = [None] * size

    def run(rank: int) -> None:
        ranks = Threads(rank, size, queues)
        summed = TreeSum(ranks, count)
        summed.compute(lambda leaf: torch.tensor([values[leaf]], dtype=torch.float64))
        found[rank] = float(summed.exchange(torch.zeros(1, dtype=torch.float64)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert found == [tree(values)] * size
