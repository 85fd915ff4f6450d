"""Attack, fine-tune, attack again: the phases, their files, their numbers, and their resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import astra_rl

from astra_rl import Moderator
from astra_rl.actions import harden as action
from astra_rl.actions.harden import Hardened, harden
from astra_rl.config.loading import load_config
from astra_rl.errors import ConfigurationError, InterruptedRunError
from astra_rl.testing import tiny_model

pytestmark = pytest.mark.slow


class SaysE(Moderator[str, str]):
    """A response with the letter e is a failure."""

    def moderate(self, x: Sequence[str]) -> list[float]:
        return [float("e" in text) for text in x]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harden")
    for name, seed in (("attacker", 0), ("target", 1)):
        model, tokenizer = tiny_model("llama", seed=seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [
        {"id": f"row-{n}", "prompt": text, "split": "train" if n < 3 else "test"}
        for n, text in enumerate(("what is it", "who are you", "go on", "say it", "why not"))
    ]
    (folder / "benign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "benign.yaml").write_text("prompts: benign.jsonl\nmoderator: {type: refusal}\n")
    (folder / "train.txt").write_text("hello there\nwhat is new\n")
    (folder / "test.txt").write_text("good evening\nbye now\nsee you\n")
    config = {
        "title": "a <tiny> test",
        "attacker": {"model": str(folder / "attacker"), "max_new_tokens": 6},
        "target": {"model": str(folder / "target"), "max_new_tokens": 12},
        "moderator": {"type": f"{__name__}:SaysE"},
        "prompts": {"file": str(folder / "train.txt"), "test_file": str(folder / "test.txt")},
        "environment": {"tree_width": 2, "tree_depth": 2},
        "training": {"steps": 2, "episodes_per_step": 2, "batch_size": 4, "lr": 1e-3},
        "evaluation": {"before": False},
        "harden": {
            "rounds": 2,
            "failures": 4,
            "benign": str(folder / "benign.yaml"),
            "safe_replies": ["i cannot share that."],
            "fine_tuning": {"method": "dpo", "lr": 0.01, "lora": {"rank": 2}},
        },
        "dtype": "float32",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def hardened(workplace: Path) -> Hardened:
    return harden(workplace / "config.yaml", workplace / "hardened")


def test_every_attacker_is_measured_against_every_target(hardened: Hardened) -> None:
    found = hardened.result
    assert found.attackers == ["attacker 0", "attacker 1", "attacker 2"]
    assert found.targets == ["target 0", "target 1", "target 2"]
    assert len(found.matrix.rates) == 9
