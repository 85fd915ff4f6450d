"""``watch``: a run on the terminal, as a screen or as plain lines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import astra_rl

from astra_rl.cli.screen import screen
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.infra.jsonio import json_line
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.progress import read_progress

ATTACK = "[bold]say[/bold] \x1b[2Jit"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run in progress: two steps, three successes, and a line that is being written."""
    folder = RunFolder(tmp_path / "run")
    folder.config.write_text("title: a run\n")
    rows = [
        {"step": 1, "reward": 0.1, "asr": None, "tokens": 100, "step_time": 2.0},
        {"step": 2, "reward": 0.5, "asr": 0.25, "tokens": 300, "step_time": 2.0},
    ]
    folder.metrics.write_text("".join(json_line(row) + "\n" for row in rows) + '{"step": 3, "re')
    with AttemptLog(folder.attempts, write=True) as log:
        for number in range(4):
            score = 0.9 if number else 0.0
            log.append(
                Attempt.make(
                    run="r",
                    phase="training",
                    opening=f"Hello {number}",
                    target="t",
                    attacker="a",
                    turns=[
                        Turn(attack=ATTACK, response="sure", scores={"j": JudgeScore(value=score)})
                    ],
                    judge="j",
                )
            )
    return folder


def test_progress_is_read_while_it_is_written(run: RunFolder) -> None:
    progress = read_progress(run, most=2)
    assert progress.step == 2
    assert progress.curves == {
        "reward": [0.1, 0.5],
        "asr": [0.25],
        "effective_attacks": [],
        "tokens_per_second": [50.0, 150.0],
    }
    assert progress.attempts == 4
    assert [each.opening.prompt for each in progress.successes] == ["Hello 3", "Hello 2"]
    assert not progress.is_complete


@pytest.mark.parametrize("step", ["Infinity", "-Infinity", "NaN", "9" * 400])
def test_a_line_without_a_usable_step_is_left_out(run: RunFolder, step: str) -> None:
    run.metrics.write_text(f'{{"step": {step}, "reward": 1}}\n{{"step": 2, "reward": 0.5}}\n')
    progress = read_progress(run)
    assert (progress.step, progress.curves["reward"]) == (2, [0.5])


def test_a_new_run_has_no_progress_yet(tmp_path: Path) -> None:
    progress = read_progress(RunFolder(tmp_path))
    assert (progress.step, progress.attempts, progress.successes) == (0, 0, [])


def test_output_that_is_no_terminal_gets_plain_lines(run: RunFolder) -> None:
    done = astra_rl("watch", "run", cwd=run.path.parent)
    assert done.returncode == 0, done.stderr
    assert "in progress   step 2   4 conversations" in done.stdout
    assert "reward: 0.5 (from 0.1)" in done.stdout
    assert done.stdout.count("success: ") == 3
    assert "[bold]say[/bold] \u241b[2Jit" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_screen_shows_texts_of_models_as_text(run: RunFolder) -> None:
    pytest.importorskip("textual")

    async def look() -> tuple[list[str], Any]:
        app = screen(run)
        async with app.run_test(size=(140, 40)) as pilot:
            await pilot.pause()
            table = app.query_one("#successes")
            cells = [str(table.get_row_at(0)[0]), str(table.get_row_at(0)[1])]
            return cells, str(app.query_one("#headline").content)

    cells, headline = asyncio.run(look())
    assert cells == ["Hello 3\u240a[bold]say[/bold] \u241b[2Jit", "sure"]
    assert "step 2" in headline
