"""A credential appears in nothing that a run writes or shows, whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.cli.running import Done, astra_rl
from tests.formats import FORMATS

from astra_rl.infra import redaction
from astra_rl.infra.redaction import REDACTED
from astra_rl.runs.attempt_log import AttemptLog

SENTINELS = {
    "environment": "sentinel-env-1a2b3c4d",
    "header": "sentinel-header-5e6f7a8b",
    "address": "sentinel-address-9c0d1e2f",
    "query": "sentinel-query-3a4b5c6d",
    "argument": "sentinel-argument-7e8f9a0b",
}
OPTIONS = {
    "moderator.options.base_url": (
        f"http://user:{SENTINELS['address']}@host.example/v1?api_key={SENTINELS['query']}"
    ),
    "moderator.options.headers.X-Gateway-Auth": SENTINELS["header"],
    "moderator.options.api_key": SENTINELS["argument"],
}
GIVEN = [part for name, value in OPTIONS.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_registered", frozenset())
        patch.setattr(redaction, "_forms", ())
        patch.setenv("SENTINEL_TOKEN", SENTINELS["environment"])
        patch.syspath_prepend(str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def leaky(workplace: Path) -> Path:
    """A folder with the configuration of a run whose moderator says its credentials."""
    config = yaml.safe_load((workplace / "config.yaml").read_text())
    config["moderator"] = {"type": "leaky:LeakyModerator", "options": {}}
    (workplace / "leaky.yaml").write_text(yaml.safe_dump(config))
    return workplace


@pytest.fixture(scope="module")
def run(leaky: Path) -> Done:
    return checked("train", "leaky.yaml", "-o", "leaky", *GIVEN, cwd=leaky, code=0)


def checked(*arguments: str, cwd: Path, code: int) -> Done:
    """Run a command and look for the sentinels in what it showed."""
    done = astra_rl(*arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    for place, secret in SENTINELS.items():
        assert secret not in done.stdout, place
        assert secret not in done.stderr, place
    return done


def check_files(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        found = [place for place, secret in SENTINELS.items() if secret.encode() in content]
        assert found == [], path


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_credential(leaky: Path, run: Done) -> None:
    check_files(leaky / "leaky")
    folder = leaky / "leaky"
    assert REDACTED in json.loads((folder / "manifest.json").read_text())["command"]
    kept = yaml.safe_load((folder / "config.yaml").read_text())["moderator"]["options"]
    assert kept["api_key"] == REDACTED
    assert kept["base_url"] == f"http://{REDACTED}@host.example/v1?api_key={REDACTED}"
    # It was said, and something else stands there: the test sees what it should.
    for name in ("attempts.jsonl", "report.html", "metrics.jsonl"):
        assert REDACTED in (folder / name).read_text("utf-8"), name


@pytest.mark.slow
def test_no_warning_shows_a_credential(run: Done) -> None:
    assert f"WARNING: asking {REDACTED}" in run.stderr


@pytest.mark.slow
def test_what_is_done_with_the_run_asks_for_the_credentials_again(leaky: Path, run: Done) -> None:
    done = checked("evaluate", "leaky", cwd=leaky, code=2)
    assert "moderator.options.api_key" in done.stderr
    checked("evaluate", "leaky", *GIVEN, cwd=leaky, code=0)
    checked("replay", "leaky", *GIVEN, cwd=leaky, code=0)
    check_files(leaky / "leaky")


@pytest.mark.slow
def test_a_run_is_continued_with_its_credentials(leaky: Path, run: Done) -> None:
    manifest = leaky / "leaky" / "manifest.json"
    record = json.loads(manifest.read_text())
    del record["seconds"]
    manifest.write_text(json.dumps(record))
    checked("train", "leaky.yaml", "-o", "leaky", *GIVEN, cwd=leaky, code=0)
    check_files(leaky / "leaky")


@pytest.mark.parametrize("kind", FORMATS)
def test_no_export_holds_a_credential(leaky: Path, run: Done, kind: str) -> None:
    options = ["--safe-replies", "replies.jsonl"] if kind == "preferences" else []
    with AttemptLog(leaky / "leaky" / "attempts.jsonl") as log:
        attacks = {turn.attack for attempt in log for turn in attempt.turns}
    replies = (json.dumps({"attack": attack, "reply": "No."}) for attack in sorted(attacks))
    (leaky / "replies.jsonl").write_text("\n".join(replies))
    out = f"exports/{kind}"
    checked("export", "leaky", "--format", kind, "-o", out, *options, cwd=leaky, code=0)
    check_files(leaky / "exports")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mood", "code", "said"),
    [
        ("mendable", 2, "error: 401"),
        ("broken", 2, "has never returned a score"),
        ("unmade", 2, "RuntimeError"),
    ],
)
def test_no_error_shows_a_credential(leaky: Path, mood: str, code: int, said: str) -> None:
    given = [*GIVEN, "--set", f"moderator.options.mood={mood}"]
    done = checked("train", "leaky.yaml", "-o", mood, *given, cwd=leaky, code=code)
    assert said in done.stderr
    assert REDACTED in done.stderr
    if (leaky / mood).is_dir():  # a start that fails before anything was played leaves none
        check_files(leaky / mood)


def test_the_traceback_of_a_defect_shows_no_credential(
    leaky: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError(f"401 Unauthorized: {SENTINELS['argument']}")

    monkeypatch.setattr("astra_rl.runs.runner.run_experiment", fail)
    done = checked("train", "leaky.yaml", "-o", "defect", *GIVEN, cwd=leaky, code=1)
    assert "Traceback" in done.stderr
    assert REDACTED in done.stderr


@pytest.mark.slow
def test_no_mistake_in_a_command_shows_a_credential(leaky: Path) -> None:
    key = SENTINELS["argument"]
    checked("train", "leaky.yaml", "--set", f"target.api_key={key}", cwd=leaky, code=2)
    checked("train", "leaky.yaml", "--set", f"target.api_key=[{key}", cwd=leaky, code=2)
    url = f"http://user:{SENTINELS['address']}@host.example"
    checked("train", "leaky.yaml", *GIVEN, "--set", f"target.model={url}", cwd=leaky, code=2)
