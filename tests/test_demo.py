"""The main job on the real bundled model, in short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.exhaustive
@pytest.mark.bundled
def test_the_demo_trains_a_real_attacker_against_a_real_model_offline(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    few = (
        *("training.steps=1", "training.episodes_per_step=2", "prompts.test=4"),
        *("environment.tree_width=4", "attacker.max_new_tokens=8", "target.max_new_tokens=6"),
    )
    short = [option for setting in few for option in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "astra_rl.cli.main", "demo", "--quick", "--output", folder, *short],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a few training steps only" in done.stdout
    before, after = (
        json.loads((folder / f"evaluation_{name}.json").read_text("utf-8"))
        for name in ("before", "after")
    )
    assert before["n"] == after["n"] == 4
    # An untrained attacker speaks ordinary text: far from certain, far from random tokens.
    assert 1.0 < before["mean_attack_nll"] < 6.0
    assert "Which questions make the assistant invent a number?" in (
        folder / "report.html"
    ).read_text("utf-8")
    for conversation in after["conversations"]:
        assert conversation["turns"][0]["attack"].count("\n") == 0

    attacker = AutoModelForCausalLM.from_pretrained(folder / "checkpoints" / "last")
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoints" / "last")
    ids = tokenizer("What is the", return_tensors="pt").input_ids
    assert attacker(ids).logits.shape[-1] == len(tokenizer)
