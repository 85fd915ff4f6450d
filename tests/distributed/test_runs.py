"""A run on several processes: one folder, equal to that of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import Done, astra_rl
from tests.distributed import fatal
from tests.distributed.group import Group

from astra_rl.infra.checkpointing import sha256
from astra_rl.runs.attempt_log import AttemptLog

pytestmark = pytest.mark.slow


def started(group: Group, *arguments: str, cwd: Path) -> list[Done]:
    """Run a command in every process."""
    found: list[Done] = group.run(astra_rl, *arguments, cwd=cwd)
    return found


def results(folder: Path) -> dict[str, Any]:
    """Return what of a run must not depend on the number of processes."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        del row["step_time"]
    with AttemptLog(folder / "attempts.jsonl") as log:
        attempts = [each.model_dump(mode="json") for each in log.attempts(order="prompt")]
    for row in attempts:
        for name in ("started", "seconds"):
            row.pop(name, None)
    weights = sorted((folder / "checkpoints/last").glob("*.safetensors"))
    evaluation = json.loads((folder / "evaluation_after.json").read_text())
    return {
        "metrics": metrics,
        "attempts": sorted(attempts, key=lambda row: str((row["phase"], row["step"], row))),
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


def happening(
    workplace: Path,
    output: str,
    size: int,
    *event: Any,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...] = (),
) -> list[Done | None]:
    """Train with processes of their own, to one of which something happens."""
    monkeypatch.chdir(workplace)
    fatal.plan(*event)
    group = Group(size)
    try:
        arguments = ("train", "config.yaml", "-o", output, *settings)
        done = group.run(astra_rl, *arguments, cwd=workplace)
        assert fatal.seconds_since() < 30
        return done
    finally:
        group.close()
        fatal.PLAN.unlink()


TIMES = {"play": (8, 8), "prepare": (1, 1), "learn": (2, 2), "save": (4, 2)}
"""How often the first and the second process pass a place before they end: the first also writes
the state that both compare."""
MOMENTS = [
    (place, count, rank) for place, counts in TIMES.items() for rank, count in enumerate(counts)
]


def check_end_and_resume(
    done: list[Done | None],
    killed: int,
    output: str,
    resumed_on: int,
    workplace: Path,
    processes: Any,
) -> None:
    """Check that one killed process has ended the others, and resume the run to its end."""
    assert [rank for rank, each in enumerate(done) if each is None] == [killed]
    survivors = [each for each in done if each is not None]
    assert {each.returncode for each in survivors} == {130}
    assert any(f"Continue with: astra-rl resume {output}" in each.stderr for each in survivors)
    if resumed_on == 1:
        ended = [astra_rl("resume", output, cwd=workplace)]
    else:
        ended = started(processes(resumed_on), "resume", output, cwd=workplace)
    assert [each.returncode for each in ended] == [0] * resumed_on, ended


@pytest.mark.parametrize(
    ("size", "place", "count", "rank", "resumed_on"),
    [
        (2, "play", 8, 1, 1),
        (2, "learn", 4, 0, 3),
        *(
            pytest.param(2, place, count, rank, resumed_on, marks=pytest.mark.exhaustive)
            for place, count, rank in MOMENTS
            for resumed_on in (1, 2, 3, 4)
        ),
        *(pytest.param(4, "save", 1, rank, 1, marks=pytest.mark.exhaustive) for rank in (0, 2)),
    ],
)
def test_a_killed_process_ends_all_and_any_number_resumes(
    size: int,
    place: str,
    count: int,
    rank: int,
    resumed_on: int,
    workplace: Path,
    tmp_path: Path,
    alone: dict[str, Any],
    processes: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = str(tmp_path / "killed")
    done = happening(workplace, output, size, place, rank, "kill", count, monkeypatch=monkeypatch)
    check_end_and_resume(done, rank, output, resumed_on, workplace, processes)
    assert results(Path(output)) == alone


SHARDED = ("--set", "training.sharding=fsdp", "--set", "attacker.lora=null")


@pytest.fixture(scope="module")
def sharded(workplace: Path, processes: Any) -> dict[str, Any]:
    """The results of full fine-tuning with shards in two processes."""
    arguments = ("train", "config.yaml", "-o", "sharded", *SHARDED)
    first, second = started(processes(2), *arguments, cwd=workplace)
    assert first.returncode == 0, first.stderr
    assert second == Done(0, "", "")
    return results(workplace / "sharded")


@pytest.mark.parametrize(
    ("place", "count", "rank", "resumed_on"),
    [
        ("learn", 2, 1, 2),
        ("save", 2, 0, 3),
        *(
            pytest.param(place, count, rank, resumed_on, marks=pytest.mark.exhaustive)
            for place, count, rank in MOMENTS
            for resumed_on in (1, 2, 4)
        ),
    ],
)
def test_a_run_with_shards_resumes_after_a_kill(
    place: str,
    count: int,
    rank: int,
    resumed_on: int,
    workplace: Path,
    tmp_path: Path,
    sharded: dict[str, Any],
    processes: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, event = str(tmp_path / "killed"), (place, rank, "kill", count)
    options = {"monkeypatch": monkeypatch, "settings": SHARDED}
    done = happening(workplace, output, 2, *event, **options)  # type: ignore[arg-type]
    check_end_and_resume(done, rank, output, resumed_on, workplace, processes)
    found = results(Path(output))
    if resumed_on == 2:
        assert found == sharded  # to the last bit
    assert len(found["metrics"]) == len(sharded["metrics"])


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_a_signal_to_one_process_ends_all_after_the_same_step(
    rank: int,
    workplace: Path,
    tmp_path: Path,
    alone: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = str(tmp_path / "ended")
    event = ("learn", rank, "terminate", 1)
    first, second = happening(workplace, output, 2, *event, monkeypatch=monkeypatch)
    assert first is not None
    assert second is not None
    assert (first.returncode, second.returncode, second.stderr) == (130, 130, "")
    assert "interrupted after step 1; everything is saved. Continue with" in first.stderr
    assert astra_rl("resume", output, cwd=workplace).returncode == 0
    assert results(Path(output)) == alone


def test_a_defect_in_one_process_is_named_in_the_first(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "failed")
    event = ("learn", 1, "raise")
    first, second = happening(workplace, output, 2, *event, monkeypatch=monkeypatch)
    assert first is not None
    assert second is not None
    assert first.returncode == 2
    assert (
        f"process 1 failed: ZeroDivisionError: a defect Continue with: astra-rl resume {output}"
        in first.stderr
    )
    assert second.returncode == 1
    assert "ZeroDivisionError" in second.stderr


def test_a_time_limit_is_decided_by_the_first_process(
    workplace: Path, tmp_path: Path, processes: Any
) -> None:
    limit = ("--set", "training.max_minutes=0.0001", "--set", "evaluation.before=false")
    output = str(tmp_path / "short")
    done = started(processes(2), "train", "config.yaml", "-o", output, *limit, cwd=workplace)
    assert [each.returncode for each in done] == [0, 0], done
    assert len((tmp_path / "short/metrics.jsonl").read_text().splitlines()) == 1


def test_engines_are_refused_by_name(workplace: Path, tmp_path: Path) -> None:
    engine = ("--set", "rollout.attacker=vllm", "-o", str(tmp_path / "engine"))
    group = Group(2)
    first, second = started(group, "train", "config.yaml", *engine, cwd=workplace)
    group.close()
    assert first.returncode == 2
    assert "rollout: attacker: vllm, target: own, judge: own given, and 2 processes" in first.stderr
    assert second == Done(130, "", "")
    assert not (tmp_path / "engine").exists()
