"""Whatever stands in the files of a run, a terminal shows it as text and obeys none of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import Done, astra_rl
from tests.formats import FORMATS

from astra_rl.evaluation.show.escaping import visible_text

pytestmark = pytest.mark.slow

HOSTILE = (
    "\x1b[31mred\x1b[2J\x1b]0;title\x07\x1b]8;;http://host.example\x1b\\link\x9b31m\x00\x08\x7f\r"
    "\u202eright\u2066left\u200bzero\u2028line\xad\U000e0041[bold]x[/bold][/nope] :bomb: "
)
KEPT = ("id", "phase", "outcome", "judge", "judge_id", "prompt_id")
"""Fields that say what a record is; all other texts may be anything."""


def check_shown(done: Done, code: int = 0) -> str:
    assert done.returncode == code, done.stderr
    for text in (done.stdout, done.stderr):
        assert visible_text(text) == text
        assert "\x1b" not in text
    return done.stdout + done.stderr


def poisoned(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: poisoned(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, key) for item in value]
    return HOSTILE + value if isinstance(value, str) and key not in KEPT else value


@pytest.fixture(scope="module")
def hostile(workplace: Path, trained: Path) -> Path:
    """A run of somebody else, with hostile text wherever a file can hold some."""
    run = workplace / "hostile"
    shutil.copytree(trained, run)
    lines = (run / "attempts.jsonl").read_text("utf-8").splitlines()
    records = [json.dumps(poisoned(json.loads(line))) for line in lines]
    (run / "attempts.jsonl").write_text("\n".join([*records, HOSTILE, "{}"]) + "\n", "utf-8")
    (run / "attempts.jsonl.index").unlink()
    for name in ("manifest.json", "evaluation_after.json", "evaluation_before.json"):
        (run / name).write_text(json.dumps(poisoned(json.loads((run / name).read_text()))))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["title"] = HOSTILE
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


@pytest.mark.parametrize(
    "command",
    [
        ["score", "hostile", "-m", "refusal"],
        ["score", "hostile", "-m", "refusal", "--fail-on", "unscored>=0"],
        ["replay", "hostile"],
        ["compare", "hostile", "run"],
        ["evaluate", "hostile", "--attacks", "hostile.txt"],
        ["evaluate", "hostile"],
        ["transfer", "hostile", "--target", "target"],
        ["info", "scenario", "hostile.yaml"],
        ["calibrate", "refusal", "--labels", "hostile.csv", "-o", "hostile-calibrations"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_commands_show_hostile_files_as_text(
    workplace: Path, hostile: Path, command: list[str]
) -> None:
    (workplace / "hostile.txt").write_text(HOSTILE.replace("\r", "").replace("\u2028", ""))
    (workplace / "hostile.yaml").write_text(
        yaml.safe_dump(
            {
                "name": HOSTILE,
                "description": HOSTILE,
                "prompts": [{"prompt": HOSTILE.replace("\x00", ""), "category": "x"}],
                "splits": {"shares": {"test": 1.0}},
            }
        )
    )
    rows = ["text,label", *(f'"{HOSTILE}{number}",{number % 2}' for number in range(6))]
    (workplace / "hostile.csv").write_text("\n".join(rows), encoding="utf-8", newline="")
    done = astra_rl(*command, cwd=workplace)
    check_shown(done, 3 if "--fail-on" in command else 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_exports_say_nothing_hostile(workplace: Path, hostile: Path, kind: str) -> None:
    output = f"hostile-exports/{kind}"
    done = astra_rl("export", "hostile", "--format", kind, "-o", output, cwd=workplace)
    check_shown(done, 2 if kind == "preferences" else 0)  # the target never failed: no pair


def test_a_hostile_suite_is_shown_as_text(workplace: Path, hostile: Path) -> None:
    suite = ["--format", "regression", "-o", "hostile-suite.json"]
    check_shown(astra_rl("export", "hostile", *suite, cwd=workplace))
    path = workplace / "hostile-suite.json"
    record = json.loads((hostile / "attempts.jsonl").read_text("utf-8").split("\n")[0])
    case = {"id": HOSTILE, "opening": record["opening"], "attacks": [HOSTILE]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "cases": [case]}))
    given = ["hostile-suite.json", "--target", "target", "--run", "run"]
    done = astra_rl("regress", *given, cwd=workplace)
    check_shown(done, done.returncode)
    assert done.returncode in (0, 3)


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        ("bad.yaml", f"attacker: {{{json.dumps(HOSTILE)}: 1}}", ["train", "bad.yaml"]),
        ("bad.yaml", json.dumps({"moderator": {"type": HOSTILE}}), ["train", "bad.yaml"]),
        ("bad.yaml", "a: [\x1b[31m", ["train", "bad.yaml"]),
        ("bad.yaml", json.dumps({"type": HOSTILE}), ["score", "run", "-m", "bad.yaml"]),
        ("bad.json", HOSTILE, ["regress", "bad.json", "--target", "target", "-m", "refusal"]),
        ("bad.json", json.dumps({HOSTILE: 1}), ["info", "scenario", "bad.json"]),
        ("bad.csv", f"text,label\nx,{HOSTILE!r}", ["calibrate", "refusal", "--labels", "bad.csv"]),
        ("bad.csv", f'"{HOSTILE}",label\nx,1', ["calibrate", "refusal", "--labels", "bad.csv"]),
    ],
)
def test_errors_repeat_hostile_files_as_text(
    workplace: Path, trained: Path, name: str, content: str, command: list[str]
) -> None:
    (workplace / name).write_text(content, encoding="utf-8", newline="")
    assert "error" in check_shown(astra_rl(*command, cwd=workplace), 2)


def test_a_hostile_model_folder_is_refused_in_plain_text(workplace: Path) -> None:
    folder = workplace / "hostile-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": HOSTILE, HOSTILE: HOSTILE}))
    done = astra_rl("train", "config.yaml", "--set", "target.model=hostile-model", cwd=workplace)
    assert "cannot load" in check_shown(done, 2)


def test_a_run_of_somebody_else_is_not_continued_without_a_word(
    workplace: Path, hostile: Path
) -> None:
    manifest = hostile / "manifest.json"
    record = json.loads(manifest.read_text())
    record.pop("seconds", None)
    manifest.write_text(json.dumps(record))
    done = astra_rl("resume", "hostile", "--set", "title=mine", cwd=workplace)
    assert "title:" in check_shown(done, 2)


def test_names_of_files_are_text_too(workplace: Path, trained: Path) -> None:
    name = "run\x1b[31m\u202e"
    shutil.copytree(trained, workplace / name)
    check_shown(astra_rl("score", name, "-m", "refusal", cwd=workplace))
    check_shown(astra_rl("compare", name, "run", cwd=workplace))
    check_shown(astra_rl("train", "config.yaml", "-o", name, cwd=workplace), 2)
