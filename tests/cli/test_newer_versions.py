"""A run of a newer version is refused by every command that reads one, and stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.cli.running import astra_rl

READING = {  # RUN stands for the folder
    "resume": "resume RUN",
    "train": "train config.yaml -o RUN",
    "train --force": "train config.yaml -o RUN --force",
    "evaluate": "evaluate RUN",
    "merge": "merge RUN",
    "view": "view RUN",
    "score": "score RUN --moderator profanity",
    "replay": "replay RUN",
    "compare": "compare RUN RUN",
    "transfer": "transfer RUN --target target",
    "report": "report RUN",
    "export": "export RUN --format csv",
    "regress": "regress suite.json --target target --run RUN",
    "failures": "failures RUN",
    "probability": "probability RUN",
    "seeds": "seeds RUN",
    "label": "label RUN --most 0",
    "forecast": "forecast RUN",
    "harden": "harden RUN",
    "push": "push RUN someone/attacker --dry-run",
    "watch": "watch RUN",
}
OF_THE_RECORD = ("report", "export", "failures", "compare", "seeds", "resume", "score")


def test_every_command_is_here() -> None:
    from astra_rl.cli.main import app

    known = {each.name or each.callback.__name__ for each in app.registered_commands}
    reads_no_run = {"demo", "info", "list", "calibrate", "test", "validate", "init", "league"}
    assert known == {line.split()[0] for line in READING.values()} | reads_no_run


@pytest.fixture
def run(trained: Path, workplace: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, and a suite made of it."""
    shutil.copytree(trained, tmp_path / "run")
    suite = workplace / "suite.json"
    if not suite.exists():
        arguments = ["export", str(trained), "--format", "regression", "-o", str(suite)]
        assert astra_rl(*arguments, cwd=workplace).returncode == 0
    return tmp_path / "run"


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".jsonl." not in path.name  # locks and indices
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", READING)
def test_a_newer_manifest_is_refused_with_the_reason(run: Path, workplace: Path, name: str) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    before = contents(run)
    done = astra_rl(*READING[name].replace("RUN", str(run)).split(), cwd=workplace)
    assert done.returncode == 2, done.stderr
    assert "manifest.json was written by a newer version of astra-rl (schema 99" in done.stderr
    assert contents(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_RECORD)
def test_a_newer_record_is_refused_with_the_reason(run: Path, workplace: Path, name: str) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    if name == "resume":
        (run / "manifest.json").write_text(json.dumps({**manifest, "seconds": None}))
        (run / "report.html").unlink()
    log = run / "attempts.jsonl"
    first, rest = log.read_text().split("\n", 1)
    newer = json.dumps({**json.loads(first), "schema_version": 99, "id": "0" * 16})
    log.write_text(f"{first}\n{rest}{newer}\n")
    before = contents(run)
    done = astra_rl(*READING[name].replace("RUN", str(run)).split(), cwd=workplace)
    assert done.returncode == 2, done.stderr
    assert "schema version 99" in done.stderr
    assert "Update astra-rl to read it" in " ".join(done.stderr.split())
    assert contents(run) == before
