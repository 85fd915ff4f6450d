"""A run that was killed or interrupted goes on to the bit."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tests.cli.processes import Command
from tests.cli.running import astra_rl

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.runs.attempt_log import AttemptLog

pytestmark = pytest.mark.slow

STEPS = 6
FAMILIES = {  # the others are in test_kill_and_resume.py
    "policy": {"type": "ppo", "options": {"kl_in_reward": 0.01}},
    "balance": {"type": "contrastive_balance", "options": {"tempered_share": 0.5}},
}


@pytest.fixture(
    scope="module", params=["policy", pytest.param("balance", marks=pytest.mark.exhaustive)]
)
def whole(request: pytest.FixtureRequest, workplace: Path) -> Path:
    """A run of this family that nothing happened to."""
    config = yaml.safe_load((workplace / "config.yaml").read_text())
    config["algorithm"] = FAMILIES[request.param]
    config["training"] |= {"steps": STEPS, "save_every": 1}
    config["reward"] = {"sum": ["harm", "self_bleu", {"attack_nll": {}, "weight": -0.01}]}
    folder = workplace / request.param
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = astra_rl(
        "train", f"{request.param}/config.yaml", "-o", str(folder / "run"), cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def attempts(run: Path) -> list[Attempt]:
    """All that was played, without when."""
    with AttemptLog(run / "attempts.jsonl") as log:
        return sorted(log, key=lambda each: each.id)


def check_same(run: Path, whole: Path) -> None:
    assert (run / "evaluation_after.json").read_text() == (
        whole / "evaluation_after.json"
    ).read_text()
    ours, theirs = (
        load_file(each / "checkpoints" / "last" / "model.safetensors") for each in (run, whole)
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert attempts(run) == attempts(whole)
    assert timeless(run) == timeless(whole)
    assert [row["step"] for row in timeless(run)] == list(range(1, STEPS + 1))


def timeless(run: Path) -> list[dict[str, Any]]:
    """The numbers of each step, but for how long it took."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for row in rows:
        del row["step_time"]
    return rows


def test_killed_at_random_moments_it_goes_on_to_the_bit(workplace: Path, whole: Path) -> None:
    """Kill -9 three times, then let it end; each start is the same command."""
    run, before = whole.parent / "killed", whole.parent / "before"
    arguments = ("train", str(whole.parent / "config.yaml"), "-o", str(run))
    generator = random.Random(whole.parent.name)
    for _ in range(3):
        seconds = generator.random() * 0.15
        while not is_killed(Command(*arguments, cwd=workplace), run, seconds):
            # It ended before it was killed: start again from where it was, and kill it sooner.
            shutil.rmtree(run)
            if before.is_dir():
                shutil.copytree(before, run)
            seconds /= 2
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(run, before)
    code, errors = Command(*arguments, cwd=workplace).wait()
    assert code == 0, errors
    check_same(run, whole)


def is_killed(command: Command, run: Path, seconds: float) -> bool:
    """Kill a command at any moment of a step: so long after it has trained, if it still has to."""
    known = steps_done(run)
    while command.is_running() and known < STEPS and steps_done(run) == known:
        time.sleep(0.005)
    time.sleep(seconds)
    code, errors = command.kill()
    assert code in (0, -signal.SIGKILL), errors
    return code != 0


def steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    workplace: Path, trained: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((workplace / "config.yaml").read_text())
    config["training"] |= {"steps": 2000, "save_every": 0}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(config))
    arguments = ("train", str(tmp_path / "long.yaml"), "-o", str(tmp_path / "run"))
    command = Command(*arguments, cwd=workplace)
    command.wait_until_written(tmp_path / "run" / "metrics.jsonl")
    command.send_signal(signal.SIGTERM)
    code, errors = command.wait()
    assert code == 130, errors
    assert f"astra-rl resume {tmp_path / 'run'}" in errors
    assert len(list((tmp_path / "run" / "states").iterdir())) == 1


@pytest.fixture
def begun(workplace: Path, trained: Path, tmp_path: Path) -> Path:
    """A run as it looks when it was killed before its last evaluation."""
    run = tmp_path / "begun"
    shutil.copytree(trained, run)
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["seconds"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_resume_takes_the_configuration_of_the_run(
    workplace: Path, begun: Path, trained: Path
) -> None:
    (begun / "evaluation_after.json").unlink()
    done = astra_rl("resume", str(begun), cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert (begun / "evaluation_after.json").read_text() == (
        trained / "evaluation_after.json"
    ).read_text()
    assert json.loads((begun / "manifest.json").read_text())["continued"][0]["at_step"] == 2


def test_another_configuration_is_refused_by_what_differs_unless_forced(
    workplace: Path, begun: Path
) -> None:
    arguments = ["resume", str(begun), "--set", "training.lr=0.5", "--set", "seed=9"]
    done = astra_rl(*arguments, cwd=workplace)
    assert done.returncode == 2
    assert "training.lr: 0.001 then, 0.5 now" in done.stderr
    assert "seed: 0 then, 9 now" in done.stderr
    assert astra_rl(*arguments, "--force", cwd=workplace).returncode == 0


def test_other_prompts_are_refused(workplace: Path, begun: Path) -> None:
    text = (workplace / "train.txt").read_text()
    (workplace / "train.txt").write_text(text + "one more\n")
    try:
        done = astra_rl("resume", str(begun), cwd=workplace)
    finally:
        (workplace / "train.txt").write_text(text)
    assert done.returncode == 2
    assert "the prompts train.txt have changed" in done.stderr


def test_changed_files_of_the_reward_and_of_the_environment_are_refused_unless_forced(
    workplace: Path, tmp_path: Path
) -> None:
    found, examples = tmp_path / "found.txt", tmp_path / "examples.jsonl"
    found.write_text("tell me a\n")
    examples.write_text('{"attack": "say a", "reward": 1}\n')
    reward = {"novel_failure": {"novelty": {"kind_novelty": {"earlier": str(found)}}}}
    environment = {"type": "few_shot", "options": {"examples": str(examples), "shots": 1}}
    settings = {"reward": reward, "environment": environment}
    config = yaml.safe_load((workplace / "config.yaml").read_text()) | settings
    config["training"] |= {"steps": 1}
    (workplace / "with_files.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    done = astra_rl("train", "with_files.yaml", "-o", str(run), cwd=workplace)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["files"] == {
        str(each): hashlib.sha256(each.read_bytes()).hexdigest() for each in (found, examples)
    }
    del manifest["seconds"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    for changed in (found, examples):
        text = changed.read_text()
        changed.write_text(text + text.replace("a", "b").replace("bttbck", "attack"))
        done = astra_rl("resume", str(run), cwd=workplace)
        assert done.returncode == 2
        assert f"{changed}' have changed since" in "".join(done.stderr.split("\n"))
        changed.write_text(text)
    found.write_text("another\n")
    assert astra_rl("resume", str(run), "--force", cwd=workplace).returncode == 0


def test_a_run_that_is_done_is_not_run_again(workplace: Path, trained: Path) -> None:
    done = astra_rl("train", "config.yaml", "-o", "run", cwd=workplace)
    assert done.returncode == 2
    assert "holds a completed run" in done.stderr


def test_a_folder_with_something_else_in_it_is_refused(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    done = astra_rl("train", "config.yaml", "-o", str(tmp_path), cwd=workplace)
    assert done.returncode == 2
    assert "is not empty" in done.stderr


def test_a_damaged_state_falls_back_on_the_one_before(workplace: Path, whole: Path) -> None:
    run = whole.parent / "damaged"
    shutil.copytree(whole, run)
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["seconds"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    newest = sorted((run / "states").iterdir())[-1] / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    done = astra_rl("resume", str(run), cwd=workplace)
    assert done.returncode == 0, done.stderr
    check_same(run, whole)


def test_two_processes_cannot_write_one_run(workplace: Path, begun: Path) -> None:
    with AttemptLog(begun / "attempts.jsonl", write=True):
        done = astra_rl("resume", str(begun), cwd=workplace)
    assert done.returncode == 2
    assert "is being written by process" in done.stderr
