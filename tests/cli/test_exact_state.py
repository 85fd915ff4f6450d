"""What a run knows at the end of a step is in its state, and nothing that is not matters."""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import astra_rl
from tests.cli.test_resume import attempts, timeless

from astra_rl.runs.provenance import versions
from astra_rl.training.states import load_state, save_state

pytestmark = pytest.mark.slow

STEPS = 6


class Judge:
    """Scores whose last digits depend on the batch, as those of models do."""

    def __init__(self) -> None:
        self.calls = 0
        self.before_call: Callable[[int], None] = lambda call: None

    def __call__(self, texts: list[str]) -> list[float]:
        self.calls += 1
        self.before_call(self.calls)
        return [(0.9 if "a" in text else 0.1) + 1e-6 * len(texts) for text in texts]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    module = types.ModuleType("judge_of_the_test")
    module.score = Judge()  # type: ignore[attr-defined]
    module.answer = lambda text: "b"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "judge_of_the_test", module)
    return module.score


@pytest.fixture
def config(workplace: Path, tmp_path: Path) -> Path:
    """A run that says the same things again and again, and keeps all that a run can keep."""
    judging = {"type": "function", "options": {"function": "judge_of_the_test:score"}}
    config: dict[str, Any] = yaml.safe_load((workplace / "config.yaml").read_text())
    config["attacker"]["max_new_tokens"] = 1
    config["target"] = {"type": "judge_of_the_test:answer"}
    config["moderator"] = {**judging, "time_limit": None}
    config["evaluation"] = {"judge": {**judging, "time_limit": None}, "watch": 4}
    config["training"] |= {"steps": STEPS, "save_every": 1, "warmup_steps": 4, "final_lr": 1e-4}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "config.yaml"


def test_a_run_that_was_stopped_knows_all_that_one_without_a_break_knows(
    workplace: Path, tmp_path: Path, config: Path, judge: Judge
) -> None:
    whole = tmp_path / "whole"
    done = astra_rl("train", str(config), "--output", str(whole), cwd=workplace)
    assert done.returncode == 0, done.stderr

    def stop(call: int) -> None:
        if call == judge.calls and call % 9 == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    judge.calls = 0
    judge.before_call = stop
    run = tmp_path / "run"
    stops = 0
    while (done := astra_rl("train", str(config), "-o", str(run), cwd=workplace)).returncode == 130:
        assert f"Continue with: astra-rl resume {run}" in done.stderr
        stops += 1
        assert stops < 20
    assert done.returncode == 0, done.stderr
    assert stops >= 2
    assert timeless(run) == timeless(whole)
    assert attempts(run) == attempts(whole)
    for name in ("reward_watch.jsonl", "evaluation_before.json", "evaluation_after.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    same = ("planned.json", "learning_curve.svg", "checkpoints/*/*", "states/*/*.safetensors")
    for each in [path for pattern in same for path in whole.glob(pattern)]:
        assert (run / each.relative_to(whole)).read_bytes() == each.read_bytes()
    assert files_of(run) == files_of(whole)


def files_of(run: Path) -> set[str]:
    """Names of the files of a run, without those of indexes and locks."""
    names = (str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return {name for name in names if ".index" not in name and not name.endswith(".lock")}


def steps_of(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines())


@pytest.fixture
def stopped(workplace: Path, tmp_path: Path, config: Path, judge: Judge) -> Path:
    """A run that would stop at its success after four steps, and was stopped before that."""
    changed = yaml.safe_load(config.read_text())
    changed["training"] |= {"stop_at_success": 0.9, "max_minutes": 60}
    changed["evaluation"]["threshold"] = 0.1  # everything is a success
    config.write_text(yaml.safe_dump(changed))
    run = tmp_path / "stopped"

    def stop(call: int) -> None:
        if (run / "metrics.jsonl").is_file() and steps_of(run) == 1:
            judge.before_call = lambda call: None
            os.kill(os.getpid(), signal.SIGTERM)

    judge.before_call = stop
    done = astra_rl("train", str(config), "--output", str(run), cwd=workplace)
    assert done.returncode == 130
    assert steps_of(run) == 2
    return run


def with_state(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = load_state(run / "states")
    assert found is not None
    change(found[1]["callbacks"])
    save_state(run / "states", *found)


def test_successes_before_a_break_count(workplace: Path, stopped: Path) -> None:
    """Success is looked for in the last four steps, so two before the break and two after it."""
    assert astra_rl("resume", str(stopped), cwd=workplace).returncode == 0
    assert steps_of(stopped) == 4


def test_the_time_before_a_break_counts(workplace: Path, stopped: Path) -> None:
    def an_hour_later(state: dict[str, Any]) -> None:
        assert 0 < state["TimeLimit"]["elapsed"] < 3600
        state["TimeLimit"]["elapsed"] += 3600

    with_state(stopped, an_hour_later)
    assert astra_rl("resume", str(stopped), cwd=workplace).returncode == 0
    assert steps_of(stopped) == 2


def test_versions_that_differ_from_those_of_the_state_are_said(
    workplace: Path, stopped: Path
) -> None:
    def of_another_torch(state: dict[str, Any]) -> None:
        assert state["RunIdentity"]["versions"] == versions()
        state["RunIdentity"]["versions"]["torch"] = "1.0"

    with_state(stopped, of_another_torch)
    done = astra_rl("resume", str(stopped), cwd=workplace)
    assert done.returncode == 0
    said = " ".join(done.stderr.split())
    assert "resuming with other package versions" in said
    assert "torch: '1.0' then" in said


def test_a_configuration_that_was_edited_in_the_folder_is_refused(
    workplace: Path, stopped: Path
) -> None:
    config = stopped / "config.yaml"
    edited = yaml.safe_load(config.read_text())
    edited["training"]["lr"] = 0.5
    config.write_text(yaml.safe_dump(edited))
    done = astra_rl("resume", str(stopped), cwd=workplace)
    assert done.returncode == 2
    assert "was edited since its newest state" in " ".join(done.stderr.split())
    assert astra_rl("resume", str(stopped), "--force", cwd=workplace).returncode == 0


def test_an_evaluation_that_fails_leaves_the_earlier_one(
    workplace: Path, tmp_path: Path, config: Path, judge: Judge
) -> None:
    run = tmp_path / "run"
    assert astra_rl("train", str(config), "-o", str(run), cwd=workplace).returncode == 0
    assert astra_rl("evaluate", str(run), cwd=workplace).returncode == 0
    names = ("attempts_again.jsonl", "evaluation_again.json", "failures_again.jsonl")
    before = {name: (run / name).read_bytes() for name in (*names, "planned.json")}

    def refuse(call: int) -> None:
        raise OSError(28, "No space left on device")

    judge.before_call = refuse
    assert astra_rl("evaluate", str(run), "--trials", "3", cwd=workplace).returncode == 2
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.glob(".*"))
