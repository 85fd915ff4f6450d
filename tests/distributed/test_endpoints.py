"""Endpoints of a run on several processes: one budget, one cache, the attempts of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import astra_rl
from tests.distributed.test_runs import results, started
from tests.endpoint import FAST, Endpoint, error, judging, said, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    """An endpoint that answers, and judges where it is asked to."""
    with serving() as server:
        yield server


@pytest.fixture
def config(workplace: Path, endpoint: Endpoint) -> str:
    """A run whose target and judge are behind an endpoint."""
    endpoint.reset()
    endpoint.reply = judging(lambda body: f"{len(said(body))} letters")
    options = {"base_url": endpoint.url, "max_tokens": 8, "calls": FAST}
    target = {"type": "openai", "options": {"model": "m", **options}}
    judge = {"type": "openai", "options": {"model": "judge", **options}}
    values = yaml.safe_load((workplace / "config.yaml").read_text())
    values |= {"target": target, "evaluation": {"before": False, "watch": 0}}
    values["moderator"] = {"type": "llm_judge", "options": {"complete": judge}}
    values["training"] |= {"steps": 2, "shards": 4, "episodes_per_step": 4}
    (workplace / "endpoint.yaml").write_text(yaml.safe_dump(values))
    return "endpoint.yaml"


def spent(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "ledger.json").read_text())["total"]
    return {name: found[name] for name in ("requests", "cached", "input_tokens", "output_tokens")}


@pytest.mark.exhaustive
def test_four_processes_make_the_calls_of_one(
    config: str, workplace: Path, endpoint: Endpoint, processes: Any
) -> None:
    done = astra_rl("train", config, "-o", "calls alone", cwd=workplace)
    assert done.returncode == 0, done.stderr
    asked = len(endpoint.requests)
    endpoint.requests.clear()
    first, *others = started(processes(4), "train", config, "-o", "calls", cwd=workplace)
    assert first.returncode == 0, first.stderr
    assert [each.returncode for each in others] == [0, 0, 0]
    assert len(endpoint.requests) == asked
    assert results(workplace / "calls") == results(workplace / "calls alone")
    assert spent(workplace / "calls") == spent(workplace / "calls alone")


def test_four_processes_have_one_budget_and_resume_when_it_is_raised(
    config: str, workplace: Path, endpoint: Endpoint, processes: Any
) -> None:
    group = processes(4)
    done = astra_rl("train", config, "-o", "whole", cwd=workplace)
    assert done.returncode == 0, done.stderr
    endpoint.requests.clear()
    limited = ("train", config, "-o", "limited", "--max-requests", "40")
    ended = started(group, *limited, cwd=workplace)
    assert ended[0].returncode == 4, ended[0].stderr
    assert "astra-rl resume limited --max-requests" in ended[0].stderr
    assert len(endpoint.requests) <= 40
    ended = started(group, "resume", "limited", "--max-requests", "1000", cwd=workplace)
    assert [each.returncode for each in ended] == [0] * 4, ended
    assert results(workplace / "limited") == results(workplace / "whole")


def test_an_endpoint_that_refuses_ends_all_processes(
    config: str, workplace: Path, endpoint: Endpoint, processes: Any
) -> None:
    endpoint.fault = lambda number: error(401, "no such key") if number >= 6 else None
    first, *others = started(processes(4), "train", config, "-o", "refused", cwd=workplace)
    assert first.returncode == 2
    assert "no such key" in first.stderr
    assert "Continue with: astra-rl resume refused" in first.stderr
    assert [(each.returncode, each.stderr) for each in others] == [(2, "")] * 3
