"""A training on several processes equals that in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.distributed import cases
from tests.distributed.group import Group, agreed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[[int], Group]]:
    """Groups of processes by their number, each started once."""
    groups: dict[int, Group] = {}

    def of(size: int) -> Group:
        return groups.setdefault(size, Group(size))

    yield of
    for group in groups.values():
        group.close()


def test_two_processes_train_like_one_to_the_last_bit(processes: Any) -> None:
    alone = cases.train("grpo", lora=True)
    assert agreed(processes(2).run(cases.train, "grpo", lora=True)) == alone


@pytest.mark.parametrize("name", sorted(cases.NAMES))
@pytest.mark.parametrize("size", [3])
def test_every_algorithm(size: int, name: str, processes: Any) -> None:
    alone = cases.train(name)
    assert agreed(processes(size).run(cases.train, name)) == alone
