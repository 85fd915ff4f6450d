"""Groups of processes, each started once per module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tests.distributed.group import Group

from astra_rl.testing import tiny_model


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[[int], Group]]:
    """Groups of processes by their number."""
    groups: dict[int, Group] = {}

    def of(size: int) -> Group:
        if size not in groups or groups[size].is_closed:
            groups[size] = Group(size)
        return groups[size]

    yield of
    for group in groups.values():
        group.close()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, prompts and a configuration."""
    folder = tmp_path_factory.mktemp("processes")
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "train.txt").write_text("hello there\nwhat is new\nhow are you\n")
    (folder / "test.txt").write_text("good evening\ngood night\nsee you\n")
    config = {
        "attacker": {"model": "model", "max_new_tokens": 6, "lora": {"rank": 2}},
        "target": {"model": "model", "max_new_tokens": 6},
        "moderator": {"type": "tests.distributed.fatal:Vowels"},
        "prompts": {"file": "train.txt", "test_file": "test.txt"},
        "environment": {"tree_width": 2, "tree_depth": 2},
        "algorithm": {"type": "tests.distributed.fatal:FatalGRPO"},
        "reward": {
            "sum": [
                "harm",
                {"self_bleu": {"against": "history"}, "weight": 0.2},
                {"attack_nll": {"under": "baseline"}, "weight": -0.05},
            ]
        },
        "training": {
            **{"steps": 4, "episodes_per_step": 3, "batch_size": 4, "lr": 1e-2},
            **{"save_every": 1, "shards": 3},
        },
        "dtype": "float32",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder
