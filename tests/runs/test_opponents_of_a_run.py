"""A run whose training attacks several targets: who answered is recorded, and resumed as it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import save_random_adapter, save_tiny_models

from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import RunConfig
from astra_rl.core.common import Metrics
from astra_rl.datasets.yaml_text import dump_yaml
from astra_rl.errors import InterruptedRunError
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.runner import Display, run_experiment
from astra_rl.training.callbacks import AnyTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A LoRA attacker on the base model of two adapters, which are its targets, as is the base."""
    folder = tmp_path_factory.mktemp("opponents")
    save_tiny_models(folder, base=1)
    for seed, name in enumerate(("one", "two")):
        save_random_adapter(folder / "base", folder / name, seed=seed)
    (folder / "train.txt").write_text("hello there\nwhat is new\n")
    (folder / "test.txt").write_text("good evening\n")
    opponents = [{"model": str(folder / name)} for name in ("base", "one", "two")]
    values = {
        "attacker": {"model": str(folder / "base"), "max_new_tokens": 4, "lora": {"rank": 2}},
        "target": {"model": str(folder / "two"), "max_new_tokens": 4, "opponents": opponents},
        "moderator": {"type": "secret_leak", "options": {"secret": "a", "partial_per_word": 0.0}},
        "prompts": {"file": str(folder / "train.txt"), "test_file": str(folder / "test.txt")},
        "environment": {"tree_width": 2, "tree_depth": 2},
        "training": {"steps": 6, "episodes_per_step": 2, "lr": 1e-2, "save_every": 1},
        "evaluation": {"before": False},
        "dtype": "float32",
    }
    return parse_config(dump_yaml(values), source="test")


def said(folder: RunFolder) -> list[tuple[Any, ...]]:
    """Phase, step, target and words of each attempt."""
    with AttemptLog(folder.attempts) as log:
        return [
            (each.phase, each.step, Path(each.target).name, [t.attack + t.response for t in turns])
            for each in log.attempts()
            for turns in [each.turns]
        ]


class StopsAt(Display):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_resumed_training_meets_the_same_targets_and_learns_the_same(
    config: RunConfig, tmp_path: Path
) -> None:
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    run_experiment(resolve(config), whole)
    for step in (2, 5):
        with pytest.raises(InterruptedRunError):
            run_experiment(resolve(config), parts, StopsAt(step))
    run_experiment(resolve(config), parts)
    found = said(whole)
    targets = {step: {each[2] for each in found if each[1] == step} for step in range(1, 7)}
    assert all(len(names) == 1 for names in targets.values())
    assert set.union(*targets.values()) == {"base", "one", "two"}
    assert {each[2] for each in found if each[0] == "after"} == {"two"}
    assert sorted(map(repr, said(parts))) == sorted(map(repr, found))
    weights = [
        (each.checkpoints / "last" / "adapter_model.safetensors").read_bytes()
        for each in (whole, parts)
    ]
    assert weights[0] == weights[1]
