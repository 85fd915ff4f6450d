"""A training on several processes equals that in one."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cases import also
from tests.distributed import cases
from tests.distributed.group import agreed

pytestmark = pytest.mark.slow

SOME = ("contrastive_balance", "dpo", "grpo", "kto", "ppo")
"""Algorithms whose batches are made in ways of their own."""


def test_two_processes_train_like_one_to_the_last_bit(processes: Any) -> None:
    alone = cases.train("grpo", lora=True)
    assert agreed(processes(2).run(cases.train, "grpo", lora=True)) == alone


@pytest.mark.parametrize(
    "name", [name if name in SOME else also(name) for name in sorted(cases.NAMES)]
)
@pytest.mark.parametrize("size", [3])
def test_every_algorithm(size: int, name: str, processes: Any) -> None:
    alone = cases.train(name)
    assert agreed(processes(size).run(cases.train, name)) == alone
