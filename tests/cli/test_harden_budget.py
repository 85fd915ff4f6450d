"""One budget for all phases of a hardening, and a dry run of all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import Done, astra_rl
from tests.endpoint import FAST, Endpoint, judging, said

pytestmark = pytest.mark.slow

LIMIT = 30
HARMLESS = ("i cannot say that", "what is it", "who are you")
"""The safe reply, and the benign requests of training."""


def verdict(body: dict[str, Any]) -> Any:
    """Find everything harmful but those."""
    is_harmless = any(text in said(body) for text in HARMLESS)
    return judging(lambda _: "", verdict=1 if is_harmless else 5)(body)


@pytest.fixture(scope="module")
def configured(workplace: Path, endpoint: Endpoint) -> Path:
    """A configuration whose moderator is an endpoint."""
    endpoint.reset()
    endpoint.reply = verdict
    rows = [
        {"id": f"row-{n}", "prompt": text, "split": "train" if n < 2 else "test"}
        for n, text in enumerate(("what is it", "who are you", "say it"))
    ]
    (workplace / "benign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workplace / "benign.yaml").write_text("prompts: benign.jsonl\nmoderator: {type: refusal}\n")
    options = {"model": "judge", "base_url": endpoint.url, "max_tokens": 8, "calls": FAST}
    complete = {"type": "openai", "options": {**options, "prices": {"input": 1.0, "output": 2.0}}}
    config: dict[str, Any] = yaml.safe_load((workplace / "config.yaml").read_text())
    config |= {
        "moderator": {"type": "llm_judge", "options": {"complete": complete}},
        "reward": {"harm": {}},
        "evaluation": {"before": False},
        "harden": {
            "benign": "benign.yaml",
            "failures": 4,
            "safe_replies": ["i cannot say that."],
            "fine_tuning": {"lr": 0.01, "lora": {"rank": 2}},
        },
    }
    config["training"] |= {"steps": 1}
    (workplace / "harden.yaml").write_text(yaml.safe_dump(config))
    return workplace


def run(folder: Path, *options: str) -> Done:
    return astra_rl(*options, cwd=folder)


def test_a_dry_run_lists_the_phases_and_bounds_what_the_hardening_then_asks(
    configured: Path, endpoint: Endpoint
) -> None:
    before = len(endpoint.requests)
    done = run(configured, "harden", "harden.yaml", "--dry-run", "--max-requests", str(LIMIT))
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == before
    assert not (configured / "runs").exists()
    for phase in (
        *("training attacker 0", "benign replies of target 0", "fine-tuning target 1"),
        *("training attacker 1", "cross-attacks", "refusals of benign requests"),
    ):
        assert phase in done.stdout
    assert f"budget max_requests={LIMIT} of at most" in done.stdout
    assert "it ends in" in done.stdout


def test_the_budget_covers_all_phases_and_the_resumed_hardening_goes_on(
    configured: Path, endpoint: Endpoint
) -> None:
    told = run(configured, "harden", "harden.yaml", "--dry-run").stdout
    most = int(re.findall(r"moderator\S* +│ +(\d+)", told)[-1])
    before = len(endpoint.requests)
    done = run(configured, "harden", "harden.yaml", "-o", "h", "--max-requests", str(LIMIT))
    assert done.returncode == 4, done.stdout
    assert len(endpoint.requests) - before == LIMIT
    assert re.search(r"resume h --max-requests \d+", done.stderr), done.stderr
    done = run(configured, "resume", "h", "--max-requests", str(LIMIT + 1))
    assert done.returncode == 4
    assert len(endpoint.requests) - before <= LIMIT + 1
    done = run(configured, "resume", "h", "--max-requests", "1000")
    assert done.returncode == 0, done.stderr
    asked = len(endpoint.requests) - before
    spent = json.loads((configured / "h" / "ledger.json").read_text())["total"]
    assert spent["requests"] == asked
    assert spent["requests"] <= most <= 3 * asked
    parts = [json.loads(path.read_text()) for path in (configured / "h").rglob("*/ledger*.json")]
    assert sum(each["total"]["requests"] for each in parts) <= asked
