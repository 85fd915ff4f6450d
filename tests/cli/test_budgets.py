"""One budget for all that a command asks, however many targets, runs or judges it names."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import astra_rl
from tests.endpoint import FAST, Endpoint, judging, said

from astra_rl.evaluation.judges.calibration import example_labels

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def healthy(endpoint: Endpoint) -> None:
    """Begin each test with an endpoint that answers, and judges where it is asked to."""
    endpoint.reset()
    endpoint.reply = judging(lambda body: f"{body['model']}: {len(said(body))} letters")


def asked(endpoint: Endpoint, model: str, **options: Any) -> dict[str, Any]:
    given = {"model": model, "base_url": endpoint.url, "max_tokens": 8, "calls": FAST, **options}
    return {"type": "openai", "options": given}


def judge(endpoint: Endpoint, model: str = "judge") -> dict[str, Any]:
    return {"type": "llm_judge", "options": {"complete": asked(endpoint, model)}}


def write(path: Path, values: Any) -> str:
    path.write_text(yaml.safe_dump(values))
    return path.name


@pytest.fixture(scope="module")
def run(workplace: Path, endpoint: Endpoint) -> Path:
    """A finished run: one evaluation of it is two conversations of two turns, each judged."""
    endpoint.reset()
    endpoint.reply = judging(lambda body: f"{body['model']}: {len(said(body))} letters")
    config = yaml.safe_load((workplace / "config.yaml").read_text())
    config["target"] = asked(endpoint, "m")
    config["evaluation"] = {"judge": judge(endpoint), "before": False, "watch": 0}
    config["training"] |= {"steps": 1}
    done = astra_rl("train", write(workplace / "c.yaml", config), "-o", "done", cwd=workplace)
    assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        write(workplace / f"{name}.yaml", {"target": asked(endpoint, f"model {name}")})
    write(workplace / "judge.yaml", judge(endpoint, "another"))
    return workplace / "done"


def test_several_targets_share_one_budget_and_the_same_command_goes_on(
    workplace: Path, run: Path, endpoint: Endpoint
) -> None:
    both = ("--target", "one.yaml", "--target", "two.yaml")
    command = ("evaluate", "done", *both, "-o", "both", "--max-requests", "9")
    done = astra_rl(*command, cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert len(endpoint.requests) == 9
    assert "1 of 2 targets were evaluated" in done.stderr
    assert "model one" in (workplace / "both" / "evaluations.json").read_text()
    done = astra_rl(*command, "--json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == 16
    assert [each["target"] for each in json.loads(done.stdout)] == ["model one", "model two"]
    # Of each target what it took itself.
    (result,) = (workplace / "both" / "targets").glob("two*/evaluation_again.json")
    spent = json.loads(result.read_text())["spent"]["total"]
    assert (spent["requests"], spent["cached"]) == (7, 1)
    assert not list((workplace / "both").glob("**/replies*"))


def test_an_evaluation_that_takes_all_of_its_budget_is_done_and_asks_again_next_time(
    workplace: Path, run: Path, endpoint: Endpoint
) -> None:
    for total in (8, 16):
        done = astra_rl("evaluate", "done", "-o", "all", "--max-requests", "8", cwd=workplace)
        assert done.returncode == 0, done.stderr
        assert len(endpoint.requests) == total


def test_without_kept_replies_a_budget_still_loses_nothing_that_was_finished(
    workplace: Path, run: Path, endpoint: Endpoint
) -> None:
    command = ("evaluate", "done", "-o", "unkept", "--set", "cache=false", "--max-requests", "7")
    done = astra_rl(*command, cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert "1 of 2 conversations were played" in done.stderr
    assert len(endpoint.requests) == 7
    assert not list((workplace / "unkept").glob("*.sqlite"))


def test_transfer_has_one_budget_counts_what_it_left_out_and_goes_on(
    workplace: Path, run: Path, endpoint: Endpoint
) -> None:
    shutil.copytree(run, workplace / "other")  # says and hears the same, which is asked once
    both = ("--target", "one.yaml", "--target", "two.yaml")
    command = ("transfer", "done", "other", *both, "--max-requests", "11")
    done = astra_rl(*command, cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert len(endpoint.requests) == 11
    assert re.search(r"the budget is exhausted: [2-3] of 8 conversations were played", done.stderr)
    rows = json.loads((run / "transfer.json").read_text())
    assert [(row["attacker"], row["target"]) for row in rows] == [
        (attacker, target)
        for attacker in ("done", "other")
        for target in ("model one", "model two")
    ]
    assert all(row["trials"] + row["unscored"] == 2 for row in rows)
    assert sum(row["unscored"] for row in rows) in (5, 6)
    done = astra_rl(*command, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "replies from the cache" in done.stdout
    rows = json.loads((run / "transfer.json").read_text())
    assert [(row["trials"], row["unscored"]) for row in rows] == [(2, 0)] * 4
    assert len(endpoint.requests) == 16
    assert not list((run / "transfer").glob("**/replies*"))


def test_transfer_tells_targets_apart_that_have_the_same_name(
    workplace: Path, run: Path, endpoint: Endpoint
) -> None:
    write(workplace / "hot.yaml", {"target": asked(endpoint, "model one", temperature=2)})
    command = ("transfer", "done", "--target", "one.yaml", "--target", "hot.yaml", "--json")
    done = astra_rl(*command, cwd=workplace)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["target"], row["trials"]) for row in rows] == [("one.yaml", 2), ("hot.yaml", 2)]


def test_judging_and_regressing_for_money_need_prices(
    workplace: Path, run: Path, endpoint: Endpoint
) -> None:
    for name in ("score", "calibrate"):
        given = ("done", "-m", "judge.yaml")
        if name == "calibrate":
            given = ("judge.yaml", "--labels", str(example_labels()))
        done = astra_rl(name, *given, "--max-cost", "1", cwd=workplace)
        assert done.returncode == 2, done.stderr
        assert "no target and no judge has prices" in done.stderr
    assert endpoint.requests == []


def test_calibrating_within_a_budget_keeps_what_was_replied_and_goes_on(
    workplace: Path, run: Path, endpoint: Endpoint
) -> None:
    command = ("calibrate", "judge.yaml", "--labels", str(example_labels()), "-o", "calibrated")
    done = astra_rl(*command, "--max-requests", "40", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert "max_requests=40 is spent" in done.stderr
    assert len(endpoint.requests) == 40
    assert not list((workplace / "calibrated").glob("calibration-*"))
    done = astra_rl(*command, "--max-requests", "40", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "40 replies from the cache" in done.stdout
    assert max(Counter(json.dumps(body) for body in endpoint.answered).values()) == 1
    assert not (workplace / "calibrated" / "replies_calibrate.sqlite").exists()


def test_the_limit_that_a_message_proposes_is_enough_for_the_next_call(
    workplace: Path, run: Path, endpoint: Endpoint
) -> None:
    done = astra_rl("train", "c.yaml", "-o", "narrow", "--max-tokens", "90", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert "is too small for the next call" in done.stderr
    sent = len(endpoint.requests)
    (proposed,) = re.findall(r"--max-tokens (\d+)", done.stderr)
    done = astra_rl("resume", "narrow", "--max-tokens", proposed, cwd=workplace)
    assert len(endpoint.requests) > sent
