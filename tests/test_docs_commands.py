"""Every sequence of commands in the documentation runs, one after the other, as a reader types it.

The reader's own things are made beforehand: models, a configuration, prompts, judges, and the runs
that the pages begin with.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.cli.running import astra_rl
from tests.endpoint import Endpoint, judging, serving
from tests.tiny_models import save_tiny_models

from astra_rl.evaluation.judges.calibration import example_labels

ROOT = Path(__file__).parent.parent
PAGES = (
    "README",
    "agents",
    "evidence",
    "harden",
    "moderators",
    "presets",
    "report",
    "runs",
    "scaling",
    "scenarios",
    "targets",
    "test",
)
LONG = ("evidence", "harden", "moderators", "presets")
"""Pages whose commands take longest; `make docs` and CI run them."""
SERVER = "http://127.0.0.1:8000/v1"
"""The endpoint of the pages; another port stands in for it."""
WORKFLOW = re.compile(r"^```yml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOOP = re.compile(r"for (\w+) in ([^;]+); do (.*?); done")
NOT_HERE = ("demo", "league", "view", "path/to", "pyrit", " first", "second.yaml")
"""Parts of commands that need a real model, a browser, or files of the index."""
GATE_FAILED = 3

CONFIG = {
    "attacker": {"model": "model/a", "max_new_tokens": 6},
    "target": {"model": "model/b", "max_new_tokens": 6},
    "moderator": {"type": "keyword", "options": {"patterns": ["[aeiou]"]}},
    "prompts": {"file": "train.txt", "test_file": "test.txt"},
    "environment": {"type": "single_turn", "tree_width": 4},
    "training": {"steps": 1, "episodes_per_step": 1, "batch_size": 4, "save_best": False},
    "dtype": "float32",
}


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page in order: loops unrolled, comments and prefixes removed."""
    text = page.read_text("utf-8")
    for block in [*SHELL.findall(text), *map(steps, WORKFLOW.findall(text))]:
        text = LOOP.sub(
            lambda loop: "\n".join(
                loop[3].replace(f"${loop[1]}", value) for value in loop[2].split()
            ),
            block.replace("\\\n", " "),
        )
        for line in text.splitlines():
            command = re.sub(r"-2026\d{4}-\d{6}", "", line.replace(".venv/bin/", ""))
            if command.startswith("astra-rl ") and not any(each in command for each in NOT_HERE):
                yield command


def steps(workflow: str) -> str:
    """Return the commands of a workflow of GitHub Actions, one per line."""
    jobs = yaml.safe_load(workflow)["jobs"].values()
    return "".join(
        f"{step['run'].strip()}\n" for job in jobs for step in job["steps"] if "run" in step
    )


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    """An endpoint that answers, and judges where it is asked to."""
    with serving() as server:
        server.reply = judging(lambda body: "I see.")
        yield server


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: two models, prompts, judges, and finished runs."""
    folder = tmp_path_factory.mktemp("reader")
    save_tiny_models(folder, **{"model/a": 0, "model/b": 1, "next/version": 2, "less/safe": 3})
    (folder / "train.txt").write_text("hello there\nwhat is new\n")
    (folder / "test.txt").write_text("good evening\nwho are you\nname a colour\n")
    (folder / "prompts.csv").write_text("prompt,category\nhello there,a\nwho are you,b\n")
    (folder / "goals.csv").write_text("prompt\nGet the code.\nGet the key.\n")
    (folder / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    agents = {"target": {"type": "scripted_agent"}, "prompts": {"scenario": "files", "test": 2}}
    (folder / "agents.yaml").write_text(yaml.safe_dump(CONFIG | agents | {"moderator": "hijack"}))
    for name in ("judge.yaml", "my_judge.yaml"):
        judge = {"type": "keyword", "options": {"patterns": ["[aeiou]{2}"]}}
        (folder / name).write_text(yaml.safe_dump(judge))
    shutil.copy(example_labels(), folder / "replies.csv")
    for number, name in enumerate(("mine", "other")):
        done = astra_rl(*f"train mine.yaml --seed {number} -o runs/{name}".split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "runs" / "mine" / "states")  # as good as new; smaller to copy
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.exhaustive if page in LONG else ()) for page in PAGES],
)
def test_the_commands_of_a_page_run_in_their_order(
    page: str,
    workplace: Path,
    tmp_path: Path,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody answers the questions of `label`
    home = tmp_path / "home"
    shutil.copytree(workplace, home)
    if page == "README":  # its runs are of two versions
        shutil.copytree(home / "runs" / "other", home / "runs" / "next")
    path = ROOT / "README.md" if page == "README" else ROOT / "docs" / f"{page}.md"
    for command in commands(path):
        typed, _, file = command.partition(" > ")
        arguments = shlex.split(typed, comments=True)[1:]
        if arguments[0] == "resume":  # of a run that is complete here
            continue
        if "--max-cost" in arguments:  # a local model costs nothing
            continue
        done = astra_rl(*(each.replace(SERVER, endpoint.url) for each in arguments), cwd=home)
        if "preferences" in arguments and "no pair of replies" in done.stderr:
            continue
        gated = "--fail-on" in arguments or arguments[0] == "regress"
        allowed = (0, GATE_FAILED) if gated else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stderr}"
        if file:
            (home / shlex.split(file, comments=True)[0]).write_text(done.stdout)


def test_no_page_with_commands_is_left_out() -> None:
    pages = {page.stem: list(commands(page)) for page in (ROOT / "docs").glob("*.md")}
    assert {name for name, found in pages.items() if found} <= set(PAGES)
