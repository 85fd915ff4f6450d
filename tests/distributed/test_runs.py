"""A run on several processes: one folder, equal to that of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import Done, astra_rl
from tests.distributed.group import Group

from astra_rl.infra.checkpointing import sha256

pytestmark = pytest.mark.slow


def started(group: Group, *arguments: str, cwd: Path) -> list[Done]:
    """Run a command in every process."""
    found: list[Done] = group.run(astra_rl, *arguments, cwd=cwd)
    return found


def results(folder: Path) -> dict[str, Any]:
    """Return what of a run must not depend on the number of processes."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    attempts = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    for row in metrics:
        del row["step_time"]
    for row in attempts:
        row["labels"] = {k: v for k, v in row.get("labels", {}).items() if k != "run"}
        for name in ("run", "time", "created", "id", "seconds"):
            row.pop(name, None)
    weights = sorted((folder / "checkpoints/last").glob("*.safetensors"))
    evaluation = json.loads((folder / "evaluation_after.json").read_text())
    return {
        "metrics": metrics,
        "attempts": attempts,
        "weights": [sha256(each) for each in weights],
        "score": evaluation["score"],
        "conversations": evaluation["conversations"],
    }


@pytest.fixture(scope="module")
def alone(workplace: Path) -> dict[str, Any]:
    """The results of the run in one process."""
    done = astra_rl("train", "config.yaml", "--output", "alone", cwd=workplace)
    assert done.returncode == 0, done.stderr
    return results(workplace / "alone")


def test_a_run_of_two_processes_has_one_folder_equal_to_that_of_one(
    workplace: Path, alone: dict[str, Any], processes: Any
) -> None:
    first, second = started(processes(2), "train", "config.yaml", "-o", "two", cwd=workplace)
    assert first.returncode == 0, first.stderr
    assert "step 4/4" in first.stdout
    assert second == Done(0, "", "")
    assert results(workplace / "two") == alone
