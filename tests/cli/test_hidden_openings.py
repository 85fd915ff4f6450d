"""Evaluations of openings with one visible text, which differ in what one side sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import astra_rl

from astra_rl.actions import evaluation_job
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.runs.attempt_log import AttemptLog

pytestmark = pytest.mark.slow

AGENT: dict[str, Any] = {
    "prompts": {"scenario": "mailbox", "train": 3, "test": 4},
    "target": {"type": "scripted_agent"},
    "environment": {"type": "tools", "options": {"tree_width": 2, "tree_depth": 1}},
    "reward": "harm",
    "moderator": None,
}
GOALS: dict[str, Any] = {
    "prompts": {"file": "train.txt", "test_file": "goals.txt", "role": "goal"},
    "environment": {"type": "single_turn", "options": {"tree_width": 2}},
}


@pytest.fixture(params=[AGENT, GOALS], ids=["agent", "goals"])
def folder(request: pytest.FixtureRequest, workplace: Path, trained: Path, tmp_path: Path) -> Path:
    """A folder with a run of these prompts, `run`, that is evaluated in batches of two."""
    (workplace / "goals.txt").write_text("name a moon\nsing a song\nfold a boat\npaint it\n")
    config = yaml.safe_load((workplace / "config.yaml").read_text()) | request.param
    config["attacker"]["model"] = str(workplace / "attacker")
    if request.param is GOALS:
        config["target"]["model"] = str(workplace / "target")
        files = {name: str(workplace / GOALS["prompts"][name]) for name in ("file", "test_file")}
        config["prompts"] = GOALS["prompts"] | files
    run = shutil.copytree(trained, tmp_path / "run")
    kept = {name: value for name, value in config.items() if value is not None}
    (run / "config.yaml").write_text(yaml.safe_dump(kept))
    return tmp_path


@pytest.fixture(autouse=True)
def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("runs.shards", "runs.phases", "actions.evaluation_job"):
        monkeypatch.setattr(f"astra_rl.{module}.EVALUATED_TOGETHER", 2)
    monkeypatch.setattr(evaluation_job, "batch_size", lambda trials: 2 * trials)


def run(folder: Path, *command: str, code: int = 0) -> None:
    done = astra_rl(*command, cwd=folder)
    assert done.returncode == code, done.stderr


def attempts(path: Path) -> list[Attempt]:
    with AttemptLog(path / "attempts_again.jsonl") as log:
        return [each.model_copy(update={"started": None, "seconds": None}) for each in log]


def lines_of(path: Path) -> list[str]:
    return (path / "attempts_again.jsonl").read_text("utf-8").splitlines()


def cut(path: Path, lines: int) -> None:
    log = path / "attempts_again.jsonl"
    log.write_text("".join(log.read_text("utf-8").splitlines(keepends=True)[:lines]), "utf-8")
    (path / "evaluation_again.json").unlink()


def conversations(path: Path) -> Any:
    return json.loads((path / "evaluation_again.json").read_text())["conversations"]


def test_merged_shards_are_the_evaluation_of_one_process(folder: Path) -> None:
    evaluate = ("evaluate", "run", "--trials", "2")
    run(folder, *evaluate, "-o", "whole")
    for shard in ("1/2", "2/2"):
        run(folder, *evaluate, "--shard", shard, "-o", "parts")
    first = folder / "parts" / "shards" / "1-of-2"
    before = attempts(first)
    started = [line["started"] for line in map(json.loads, lines_of(first)[:2])]
    cut(first, 3)
    run(folder, *evaluate, "--shard", "1/2", "-o", "parts")
    assert attempts(first) == before
    assert [line["started"] for line in map(json.loads, lines_of(first)[:2])] == started
    run(folder, "merge", "run", "parts", "--trials", "2", "-o", "merged")
    whole = attempts(folder / "whole")
    assert attempts(folder / "merged") == whole
    assert len({(each.prompt_id, each.trial) for each in whole}) == 8
    assert [each.trial for each in whole] == [0] * 4 + [1] * 4
    assert conversations(folder / "merged") == conversations(folder / "whole")


def test_a_condition_that_is_continued_plays_what_one_session_plays(folder: Path) -> None:
    evaluate = ("evaluate", "run", "--trials", "2", "--until", "upper(asr)<0.0001")
    run(folder, *evaluate, "-o", "one")
    shutil.copytree(folder / "one", folder / "two")
    cut(folder / "two", 5)
    run(folder, *evaluate, "-o", "two")
    found = attempts(folder / "one")
    assert attempts(folder / "two") == found
    assert len({each.prompt_id for each in found}) == 4
    run(folder, *evaluate, "-o", "two")  # it is finished: nothing is played
    assert attempts(folder / "two") == found


def test_under_a_budget_the_same_conversations_are_played_in_random_order(folder: Path) -> None:
    evaluate = ("evaluate", "run", "--trials", "2")
    run(folder, *evaluate, "-o", "planned")
    run(folder, *evaluate, "--max-minutes", "60", "-o", "random")
    planned, played = (
        [(each.trial, each.prompt_id, each.turns[0].attack) for each in attempts(folder / name)]
        for name in ("planned", "random")
    )
    assert [trial for trial, *_ in played] == [0] * 4 + [1] * 4
    assert played != planned
    assert sorted(played) == sorted(planned)
    listed = [
        [(each["trial"], each["prompt_id"], each["outcome"]) for each in conversations(path)]
        for path in (folder / "planned", folder / "random")
    ]
    assert listed[0] == listed[1]
