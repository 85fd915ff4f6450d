"""An evaluation divided into shards: merged, it is that of one process, or it is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import Done, astra_rl
from tests.cli.test_endpoints import written
from tests.endpoint import Endpoint, judging, said

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.report import render_run_page

pytestmark = pytest.mark.slow

PLAYED = ("--trials", "3")
"""Options of the evaluation that is divided: six conversations, in batches of two."""


@pytest.fixture(autouse=True)
def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard plays whole batches; small ones make many shards of few conversations."""
    for module in ("runs.shards", "runs.phases", "actions.evaluation_job"):
        monkeypatch.setattr(f"astra_rl.{module}.EVALUATED_TOGETHER", 2)


def play(cwd: Path, *options: str, run: str = "run", code: int = 0) -> Done:
    done = astra_rl("evaluate", run, *options, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done


def attempts(folder: Path, phase: str = "again") -> list[Attempt]:
    with AttemptLog(folder / f"attempts_{phase}.jsonl") as log:
        return [each.model_copy(update={"started": None, "seconds": None}) for each in log]


def metrics(folder: Path, phase: str = "again") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"evaluation_{phase}.json").read_text())
    del found["spent"]["seconds"]
    return found


def check_same(merged: Path, whole: Path, phase: str = "again") -> None:
    assert attempts(merged, phase) == attempts(whole, phase)
    assert list(metrics(merged, phase).items()) == list(metrics(whole, phase).items())
    for name in ("config.yaml", "planned.json", f"failures_{phase}.jsonl"):
        assert (merged / name).read_text() == (whole / name).read_text(), name
    assert page(merged) == page(whole)


def page(results: Path) -> str:
    """Return the report of results; it says where they are, so they are read from beside them."""
    with contextlib.chdir(results.parent):
        return render_run_page(RunFolder(results.name))


@pytest.fixture(scope="module")
def played(workplace: Path, trained: Path) -> Path:
    """The folder `shards` with three shards, and `whole` with what one process plays."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("runs.shards", "runs.phases", "actions.evaluation_job"):
            patch.setattr(f"astra_rl.{module}.EVALUATED_TOGETHER", 2)
        play(workplace, *PLAYED, "-o", "whole-results/results")
        for number in (1, 2, 3):
            play(workplace, *PLAYED, "--shard", f"{number}/3", "-o", "shards")
    return workplace / "shards"


def test_merged_shards_are_the_evaluation_of_one_process(played: Path, workplace: Path) -> None:
    condition = "upper(asr)<0.001"
    done = astra_rl(
        *("merge", "run", "shards", *PLAYED, "-o", "merged-all/results", "--fail-on", condition),
        cwd=workplace,
    )
    assert done.returncode == 0, done.stderr
    check_same(workplace / "merged-all" / "results", workplace / "whole-results" / "results")
    whole = play(workplace, *PLAYED, "-o", "gated", "--fail-on", condition)
    ours, theirs = (
        [line for line in each.stdout.splitlines() if "result:" not in line]
        for each in (done, whole)
    )
    assert ours == theirs
    failing = ("--fail-on", "asr>=0")
    done = astra_rl(
        "merge", "run", "shards", *PLAYED, "-o", "merged-all/results", *failing, cwd=workplace
    )
    assert done.returncode == 3


def test_shards_of_given_attacks_keep_the_numbers_of_their_trials(
    trained: Path, workplace: Path
) -> None:
    lines = [{"attack": f"say {n}", "context": "good evening"} for n in range(4)]
    lines += [{"attack": "and you", "context": "hello"}]
    (workplace / "given.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    given = ("--attacks", "given.jsonl")
    play(workplace, *given, "-o", "given-results/results")
    for number, place in ((2, "there"), (1, "here"), (3, "there")):
        play(workplace, *given, "--shard", f"{number}/3", "-o", place)
    done = astra_rl(
        "merge", "run", "here", "there", *given, "-o", "both-results/results", cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    check_same(workplace / "both-results" / "results", workplace / "given-results" / "results")


def test_an_interrupted_shard_continues_and_a_finished_one_is_not_played_again(
    played: Path, workplace: Path
) -> None:
    first = shutil.copytree(played, workplace / "cut") / "shards" / "1-of-3"
    log = first / "attempts_again.jsonl"
    lines = log.read_text("utf-8").splitlines(keepends=True)
    log.write_text(lines[0], "utf-8")  # killed within the batch
    (first / "evaluation_again.json").unlink()
    done = astra_rl(
        "merge", "run", "cut", *PLAYED, "-o", "merged-after-a-cut/results", cwd=workplace
    )
    assert done.returncode == 2
    assert "shard 1/3" in done.stderr
    assert "is not finished" in done.stderr
    assert not (workplace / "merged-after-a-cut" / "results" / "attempts_again.jsonl").exists()
    play(workplace, *PLAYED, "--shard", "1/3", "-o", "cut")
    size = log.stat().st_size
    play(workplace, *PLAYED, "--shard", "1/3", "-o", "cut")
    assert log.stat().st_size == size
    done = astra_rl(
        "merge", "run", "cut", *PLAYED, "-o", "merged-after-a-cut/results", cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    check_same(
        workplace / "merged-after-a-cut" / "results", workplace / "whole-results" / "results"
    )


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def remove(folder: Path) -> None:
    shutil.rmtree(folder / "2-of-3")


def double(folder: Path) -> None:
    shutil.copytree(folder / "2-of-3", folder / "02-of-3")


def another_division(folder: Path) -> None:
    shutil.copytree(folder / "2-of-3", folder / "2-of-2")
    edit(folder / "2-of-2" / "shard_again.json", lambda kept: kept.update(count=2))


def another_judge(folder: Path) -> None:
    path = folder / "2-of-3" / "shard_again.json"
    edit(path, lambda kept: kept["evaluation"]["judge"].update(settings="0"))


def other_weights(folder: Path) -> None:
    path = folder / "2-of-3" / "shard_again.json"
    edit(path, lambda kept: kept["evaluation"]["models"].update(target="0"))


def another_version(folder: Path) -> None:
    path = folder / "2-of-3" / "shard_again.json"
    edit(path, lambda kept: kept["evaluation"]["versions"].update(torch="0"))


def another_calibration(folder: Path) -> None:
    quality = {"labels": "l", "rows": 2, "threshold": 0.5, "created": "2026"}
    names = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    counts = dict.fromkeys(names, 1)
    path = folder / "2-of-3" / "evaluation_again.json"
    edit(path, lambda kept: kept.update(judge_quality={**quality, "counts": counts}))


def lines_of(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = folder / "2-of-3" / "attempts_again.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def lost_attempt(folder: Path) -> None:
    lines_of(folder, lambda lines: lines[:-1])


def attempt_of_another_shard(folder: Path) -> None:
    other = (folder / "1-of-3" / "attempts_again.jsonl").read_text().splitlines(keepends=True)
    lines_of(folder, lambda lines: [*lines[:-1], other[0]])


def renamed(folder: Path, field: str) -> None:
    lines_of(
        folder,
        lambda lines: [json.dumps({**json.loads(each), field: "0"}) + "\n" for each in lines],
    )


def attempt_of_another_run(folder: Path) -> None:
    renamed(folder, "run")


def attempt_of_another_judge(folder: Path) -> None:
    renamed(folder, "judge_id")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (remove, "of 3 shards 1 are missing: 2/3"),
        (double, "shard 2/3 is there twice"),
        (another_division, "shards of several divisions were found: 1 of 2, 3 of 3"),
        (another_judge, "judge is"),
        (other_weights, "models is"),
        (another_version, "versions is"),
        (another_calibration, "another calibration of the judge"),
        (lost_attempt, "has 1 attempts, and its result was computed from 2"),
        (attempt_of_another_shard, "has an attempt that is not its own"),
        (attempt_of_another_run, "has an attempt that is not its own"),
        (attempt_of_another_judge, "has an attempt that is not its own"),
    ],
)
def test_an_incomplete_or_foreign_set_is_refused(
    harm: Callable[[Path], None], words: str, played: Path, workplace: Path, tmp_path: Path
) -> None:
    harm(shutil.copytree(played, tmp_path / "harmed") / "shards")
    places = (str(tmp_path / "harmed"), "-o", str(tmp_path / "merged"))
    done = astra_rl("merge", "run", *places, *PLAYED, cwd=workplace)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "merged" / "attempts_again.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--trials", "4"), "trials is 3 and not 4"),
        ((*PLAYED, "--set", "seed=5"), "run is"),
        ((*PLAYED, "--set", "evaluation.threshold=0.25"), "threshold is 0.5 and not 0.25"),
        (("--attacks", "direct"), "no shards of the phase 'direct'"),
    ],
)
def test_shards_are_merged_with_the_options_they_were_played_with(
    options: tuple[str, ...], words: str, played: Path, workplace: Path
) -> None:
    done = astra_rl("merge", "run", "shards", *options, "-o", "never", cwd=workplace)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard", "4/3"), "it must be i/n with 1 <= i <= n"),
        (("--shard", "0/3"), "it must be i/n"),
        (("--shard", "1"), "it must be i/n"),
        ((*PLAYED, "--shard", "1/4"), "there can be at most 3"),
        (("--shard", "1/1", "--until", "upper(asr)<0.5"), "--until and --shard given"),
        (("--shard", "1/1", "--target", "target", "--target", "attacker"), "give one --target"),
        (
            ("--trials", "5", "--shard", "1/3", "-o", "shards"),
            "holds a shard of another evaluation",
        ),
    ],
)
def test_a_shard_that_cannot_be_played_is_refused(
    options: tuple[str, ...], words: str, played: Path, workplace: Path
) -> None:
    done = play(workplace, *options, code=2)
    assert words in done.stderr


def test_shards_divide_a_budget_and_their_spending_is_added(
    workplace: Path, trained: Path, endpoint: Endpoint
) -> None:
    endpoint.reset()
    endpoint.reply = judging(lambda body: f"{len(said(body))} letters, they say")
    config = yaml.safe_load((workplace / written(workplace, endpoint, "divided")).read_text())
    run = shutil.copytree(trained, workplace / "asked_run")
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    def spent(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((workplace / name / "ledger_again.json").read_text())
        return found

    play(workplace, *PLAYED, "--max-requests", "1000", "-o", "whole-asked/results", run="asked_run")
    for number in (1, 2):
        shard = ("--shard", f"{number}/2", "-o", "d")
        play(workplace, *PLAYED, "--max-requests", "1000", *shard, run="asked_run")
    parts = [spent(f"d/shards/{number}-of-2")["budget"]["max_requests"] for number in (1, 2)]
    assert parts == [666, 333]  # four of the six conversations, and two
    options = (*PLAYED, "--max-requests", "1000", "-o", "merged-asked/results")
    done = astra_rl("merge", "asked_run", "d", *options, cwd=workplace)
    assert done.returncode == 0, done.stderr
    check_same(workplace / "merged-asked" / "results", workplace / "whole-asked" / "results")
    for key in ("accounts", "total", "budget", "ended_by"):
        assert spent("merged-asked/results")[key] == spent("whole-asked/results")[key], key


def test_shards_that_a_budget_ended_count_what_was_not_played(
    workplace: Path, trained: Path, endpoint: Endpoint
) -> None:
    endpoint.reset()
    endpoint.reply = judging(lambda body: f"{len(said(body))} letters, they say")
    config = yaml.safe_load((workplace / written(workplace, endpoint, "little")).read_text())
    run = shutil.copytree(trained, workplace / "little_run")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    options = (*PLAYED, "--max-requests", "18")  # of 24 at most: two turns, each judged
    for number in (1, 2, 3):
        shard = ("--shard", f"{number}/3", "-o", "l")
        done = astra_rl("evaluate", "little_run", *options, *shard, cwd=workplace)
        assert done.returncode in (0, 4), done.stderr
    assert len(endpoint.requests) <= 18
    done = astra_rl("merge", "little_run", "l", *options, "-o", "lm", cwd=workplace)
    assert done.returncode == 4, done.stderr
    found = metrics(workplace / "lm")
    assert 0 < found["n"] < found["planned"] == 6
    assert found["outcomes"]["error"] >= 6 - found["n"]
    assert len(attempts(workplace / "lm")) == found["n"]
    assert [each["trial"] for each in found["conversations"]] == sorted(
        each["trial"] for each in found["conversations"]
    )
    # A larger budget continues the parts, in the order that they were begun in.
    for number in (1, 2, 3):
        shard = ("--shard", f"{number}/3", "-o", "l", "--max-requests", "900")
        play(workplace, *PLAYED, *shard, run="little_run")
    done = astra_rl("merge", "little_run", "l", *PLAYED, "-o", "lm", cwd=workplace)
    assert done.returncode == 0, done.stderr
    play(workplace, *PLAYED, "-o", "lw", run="little_run")
    ours, theirs = (metrics(workplace / name)["conversations"] for name in ("lm", "lw"))
    assert ours == theirs
