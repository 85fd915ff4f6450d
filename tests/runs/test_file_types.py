"""Files of a run folder that came from another person: any value is read, or refused by name."""

from __future__ import annotations

import copy
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import astra_rl
from tests.evaluation.show.report.making import attempt, turn

from astra_rl.actions.compare import compare_runs
from astra_rl.config.schema import RunConfig
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgeQuality
from astra_rl.evaluation.measures.transfer_matrix import transfer_matrix
from astra_rl.evaluation.stats.classification import Confusion
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.splitting import OfPrompt, SplitRun, rare_probability
from astra_rl.methods.archive import Archive, Cell
from astra_rl.runs.archives import write_archive
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.file_types import PlayedEvaluation
from astra_rl.runs.folder import RunFolder, read_own
from astra_rl.runs.report import _spent, read_run
from astra_rl.targets.budget import Prices, Usage
from astra_rl.targets.ledger import Ledger

WRONG = [
    *(None, True, "x", "", -1, -1.5, 0, 1e308, 10**30, 10**299),
    *([], {}, ["x"], [1], {"a": 1}, [[[[[]]]]]),
]
MISSING = object()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with every file that a page is made of, each written by its own writer."""
    folder = RunFolder(tmp_path / "run")
    config = {
        "attacker": {"model": "a"},
        "target": {"model": "b"},
        "moderator": {"type": "secret_leak"},
        "prompts": {"scenario": "planted_secrets"},
    }
    folder.write_text(folder.config, RunConfig.model_validate(config).to_yaml())
    made = [attempt(turn("a", "b", 0.9), opening="o", phase="after")]
    with AttemptLog(folder.attempts, write=True) as log:
        log.append(made[0])
    folder.write_json(folder.planned, {"after": 1})
    spent = Ledger()
    spent.charge("endpoint", Usage(5, 6), Prices(1, 1))
    for name in ("ledger.json", "ledger_score.json"):
        folder.write_json(folder.path / name, spent.as_dict())
    folder.write_json(
        folder.manifest,
        {
            "schema_version": 1, "run": "r", "title": "t", "command": "c", "seed": 1,
            "started": "2026-01-01T00:00:00Z", "versions": {"torch": "2"},
            "prompts": [{"name": "p", "sha256": "0"}], "seconds": {"training": 1.5},
            "continued": [{"at_step": 2}], "warnings": ["w"], "notes": ["n"],
            "spent": spent.as_dict(),
        },
    )  # fmt: skip
    quality = JudgeQuality("labels.csv", 9, 0.5, "2026", Confusion(3, 1, 4, 1),
                           (Confusion(3, 1, 0, 1), Confusion(0, 0, 4, 0)))  # fmt: skip
    kinds = {"estimate": 1.5, "low": 1.0}
    folder.write_json(
        folder.evaluation("after"),
        {
            "judge_quality": quality.as_dict(), "until": None, "n": 1, "planned": 1,
            "diversity": {"effective_by_meaning": kinds},
            "judge_identity": {"weights": "m 0123"},
        },
    )  # fmt: skip
    folder.write_json(folder.stopped, ["after_judge"])
    folder.write_json(folder.transfer, transfer_matrix(each.row for each in made).as_dict())
    parts = {"a": OfPrompt(1, 4, 0.2), "b": OfPrompt(0, 4, 0.0)}
    runs = [SplitRun(0.2, 9, 2, (), Rate(1, 8), parts)] * 2
    folder.write_json(folder.path / "probability_rare.json", rare_probability(runs).as_dict())
    folder.write_lines(
        folder.reward_watch,
        [
            {
                "step": 1, "watch/moderator": 0.5, "watch/judge": 0.2,
                "shared_ngrams": [{"text": "a b c", "high": 0.5, "others": 0.1}],
            }
        ],
    )  # fmt: skip
    archive = Archive(["a risk"], ["a story", "a question"])
    archive.add(Cell("a risk", "a story"), "attack", 0.5)
    write_archive(folder, archive)
    folder.write_lines(folder.metrics, [{"step": 1, "asr": 0.5, "reward": 0.1}])
    compared = compare_runs(folder.path, folder.path).as_dict()
    sides = {side: {"name": compared[side]["name"]} for side in ("a", "b")}
    kept = {**sides, "pairs": compared["pairs"], "only_b": [{"attacks": ["a"]}]}
    folder.write_json(folder.path / "comparisons" / "a-b.json", kept)
    return folder


FILES = [
    *("manifest.json", "planned.json", "ledger.json", "ledger_score.json", "evaluation_after.json"),
    "stopped.json",
    "archive.json",
    *("transfer.json", "probability_rare.json", "reward_watch.jsonl", "metrics.jsonl"),
    "comparisons/a-b.json",
]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of a value and of all values in it; of a list, those of its first item."""
    yield place
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*place, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*place, 0))


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if new is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_any_value_in_a_file_of_a_run_is_read_or_refused_by_its_name(
    run: RunFolder, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each field has two of the wrong values, others than the field before it."""
    caplog.set_level(logging.ERROR)
    path = run.path / name
    whole = json.loads(path.read_text())
    wrong = itertools.cycle([*WRONG, MISSING])
    for place in places(whole):
        for new in itertools.islice(wrong, 2):
            if place or new is not MISSING:
                path.write_text(json.dumps(changed(whole, place, new)) + "\n")
                try:
                    read_run(run)
                except ConfigurationError as error:
                    assert name in str(error) or "planned" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("name", "place", "new", "said"),
    [
        ("evaluation_after.json", ("diversity",), "x", "diversity: Input should be"),
        ("evaluation_after.json", ("until",), 1, "until: Input should be a valid string"),
        (
            "evaluation_after.json",
            ("judge_quality", "counts", "true_positives"),
            -1,
            "judge_quality.counts.true_positives: Input should be greater than or equal to 0",
        ),
        ("manifest.json", ("spent", "total", "cost"), -1.5, "spent.total.cost: Input should be"),
        ("manifest.json", ("spent", "total"), -1.5, "spent.total: Input should be"),
        ("manifest.json", ("seconds", "training"), 1e300, "seconds.training: Input should be"),
        ("ledger.json", ("total", "requests"), 10**30, "total.requests: Input should be"),
        ("comparisons/a-b.json", ("pairs", "low"), "x", "pairs.low: Input should be"),
        ("transfer.json", (0, "estimate"), None, "0: Value error, estimate is missing"),
        ("probability_rare.json", ("estimate",), 2, "estimate: Input should be less than or equal"),
    ],
)
def test_report_names_the_field(
    run: RunFolder, name: str, place: tuple[Any, ...], new: Any, said: str
) -> None:
    path = run.path / name
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, new)))
    done = astra_rl("report", "run", cwd=run.path.parent)
    assert done.returncode == 2, done.stderr
    assert f"{name} is not a valid file of a run: {said}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["compare", "run", "run"], ["export", "run", "-f", "junit"]])
def test_other_commands_name_the_field(run: RunFolder, command: list[str]) -> None:
    run.write_json(run.evaluation("after"), {"until": 3})
    done = astra_rl(*command, cwd=run.path.parent)
    assert done.returncode == 2, done.stderr
    assert "evaluation_after.json is not a valid file of a run: until: " in done.stderr


def test_spending_is_read_from_the_file_of_the_ledger_or_from_the_manifest(run: RunFolder) -> None:
    manifest = run.read_manifest()
    for _ in range(2):
        found = {each.occasion: each for each in _spent(run, manifest)}
        assert found == {} or found["the run"].input_tokens == 5
        (run.path / "ledger.json").unlink(missing_ok=True)


def test_metrics_that_cannot_be_drawn_are_left_out(run: RunFolder) -> None:
    run.write_text(run.metrics, '{"step": 1, "asr": 0.5, "reward": 1e308, "reward_std": 1e308}\n')
    (row,) = read_run(run).training.history
    assert {name: row[name] for name in ("step", "asr")} == {"step": 1.0, "asr": 0.5}
    assert "reward" not in row


def test_an_evaluation_that_a_resume_shows_has_all_that_is_shown(run: RunFolder) -> None:
    with pytest.raises(ConfigurationError, match="judge: Field required"):
        read_own(run.evaluation("after"), PlayedEvaluation)
