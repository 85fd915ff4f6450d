"""Whole runs on tiny models, with other rewards and environments than the demo's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import resolve
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.runner import run_experiment
from astra_rl.testing import tiny_model

pytestmark = pytest.mark.slow

LEAK = {"type": "secret_leak", "options": {"secret": "e", "partial_per_word": 0.0}}
RUNS: dict[str, dict[str, Any]] = {
    "attempts paid by a product": {
        "environment": {"type": "attempts", "tree_width": 2, "tree_depth": 2},
        "reward": {
            "product": ["harm", {"standardized": {"part": "style_diversity"}}, "brevity"],
        },
    },
    "a pruned tree under a constraint": {
        "environment": {"type": "pruned_tree", "tree_width": 3, "tree_depth": 2},
        "reward": {
            "constraint": {
                "part": {"sum": ["self_bleu", {"embedding_novelty": {"embedder": "baseline"}}]},
                "limits": [{"part": "harm", "at_least": 0.5}],
            }
        },
    },
    "the best of n for the likeliest failure": {
        "environment": {"type": "best_of_n", "tree_width": 3, "tree_depth": 2},
        "reward": {"ast": {"turns": 2, "under": "baseline"}},
    },
    "a game": {
        "environment": {"type": "self_play", "tree_width": 3, "options": {"replies": 2}},
        "reward": "harm",
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_evaluates_and_reports(name: str, tmp_path: Path) -> None:
    for seed, role in enumerate(("attacker", "target")):
        model, tokenizer = tiny_model("llama", window=256, seed=seed)
        model.save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
    (tmp_path / "train.txt").write_text("hello there\nwhat is new\n")
    (tmp_path / "test.txt").write_text("good evening\n")
    config = {
        "attacker": {"model": str(tmp_path / "attacker"), "max_new_tokens": 6},
        "target": {"model": str(tmp_path / "target"), "max_new_tokens": 6},
        "moderator": LEAK,
        "prompts": {"file": str(tmp_path / "train.txt"), "test_file": str(tmp_path / "test.txt")},
        "training": {"steps": 2, "episodes_per_step": 2, "batch_size": 8},
        "evaluation": {"before": False},
        "dtype": "float32",
        "device": "cpu",
        **RUNS[name],
    }
    folder = RunFolder(tmp_path / "run")
    result = run_experiment(resolve(parse_config(yaml.safe_dump(config), source=name)), folder)
    assert result.training_steps == 2
    assert sum(result.after.summary.outcomes.values()) == 1
    steps = [json.loads(line) for line in folder.metrics.read_text("utf-8").splitlines()]
    assert all(0 <= step["asr"] <= 1 for step in steps)
    assert all("rewards/harm_response/mean" in step for step in steps)
    assert folder.report.exists()
