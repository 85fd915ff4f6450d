"""Shared options: every command shows them in its help, and gets their values."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from tests.cli.running import astra_rl
from typer.testing import CliRunner

from astra_rl import __version__
from astra_rl.cli.exit_codes import ExitCode
from astra_rl.cli.main import COMMANDS
from astra_rl.cli.options import (
    BudgetOptions,
    ResultOptions,
    RunOptions,
    SettingOptions,
    expand_groups,
)
from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.targets.budget import Budget

LIMITS = ("--max-requests", "--max-tokens", "--max-cost", "--max-minutes")
BUDGETED = {
    *("demo", "train", "resume", "evaluate", "score", "replay", "transfer", "regress"),
    *("probability", "calibrate", "test", "validate", "harden", "merge"),
}
GATED = {
    *("evaluate", "merge", "score", "replay", "compare", "transfer", "probability", "seeds"),
    *("test", "harden", "regress"),
}
CONFIGURED = {
    *("demo", "train", "resume", "evaluate", "replay", "regress", "probability", "validate"),
    *("harden", "merge"),
}
ESTIMATED = {"demo", "train", "evaluate", "replay", "test", "harden"}
DRY = {*ESTIMATED, "push"}
NAMES = [command.__name__ for commands in COMMANDS.values() for command in commands]


def options_in_help(command: str, cwd: Path) -> set[str]:
    done = astra_rl(command, "--help", cwd=cwd)
    assert done.returncode == 0
    return {word for word in done.stdout.split() if word.startswith("--")}


@pytest.mark.parametrize("command", NAMES)
def test_the_help_of_a_command_shows_its_shared_options(command: str, tmp_path: Path) -> None:
    shown = options_in_help(command, tmp_path)
    assert set(LIMITS) <= shown if command in BUDGETED else not set(LIMITS) & shown
    assert ("--fail-on" in shown) == (command in GATED)
    assert ("--set" in shown) == (command in CONFIGURED)
    assert ("--dry-run" in shown) == (command in DRY)


def test_the_values_of_a_group_arrive_in_one_object() -> None:
    received = []

    def command(run: Path, options: RunOptions, result: ResultOptions) -> None:
        received.append((run, options, result))

    app = typer.Typer()
    app.command()(expand_groups(command))
    arguments = "there --set a=1 --set b=2 --seed 3 -o out --max-cost 0.5 --dry-run --json"
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 0, done.output
    ((run, options, result),) = received
    assert run == Path("there")
    assert options == RunOptions(
        max_cost=0.5, settings=["a=1", "b=2"], seed=3, output=Path("out"), dry_run=True
    )
    assert result == ResultOptions(fail_on=None, as_json=True)


def test_an_option_of_a_command_and_of_its_group_cannot_have_one_name() -> None:
    def command(options: BudgetOptions, max_cost: float = 1.0) -> None: ...

    with pytest.raises(ValueError, match="max_cost"):
        expand_groups(command)


def test_budget_options_become_a_budget_and_overrides() -> None:
    assert BudgetOptions().budget() is None
    assert BudgetOptions().overrides() == []
    given = SettingOptions(max_requests=3, max_minutes=0.5, settings=["seed=1"])
    assert given.budget() == Budget(max_requests=3, max_minutes=0.5)
    assert given.overrides() == ["seed=1", "budget.max_requests=3", "budget.max_minutes=0.5"]
    with pytest.raises(ConfigurationError, match="max_cost"):
        BudgetOptions(max_cost=-1).budget()


def test_the_options_for_the_seed_and_the_budget_override_set() -> None:
    given = RunOptions(settings=["seed=1", "budget.max_cost=1"], seed=2, max_cost=3.0)
    assert given.overrides()[-2:] == ["budget.max_cost=3.0", "seed=2"]


def test_every_command_is_listed_in_a_panel(tmp_path: Path) -> None:
    done = astra_rl("--help", cwd=tmp_path)
    for panel, commands in COMMANDS.items():
        assert panel in done.stdout
        for command in commands:
            assert f" {command.__name__} " in done.stdout


def test_version_prints_the_version(tmp_path: Path) -> None:
    done = astra_rl("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"astra-rl {__version__}\n")


def test_quiet_prints_errors_only(tmp_path: Path) -> None:
    done = astra_rl("--quiet", "info", "presets", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = astra_rl("--quiet", "info", "preset", "none", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE_ERROR
    assert "no preset" in done.stderr
    assert astra_rl("info", "presets", cwd=tmp_path).stdout


def test_exit_codes_are_those_of_the_documentation() -> None:
    assert {each.name: each.value for each in ExitCode} == {
        "OK": 0,
        "DEFECT": 1,
        "USAGE_ERROR": 2,
        "GATE_FAILED": 3,
        "BUDGET_EXHAUSTED": 4,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("needed", "suggested"),
    [(0.0080139999999999, 0.01603), (0.0080151, 0.01604), (15, 30), (123456, 247000)],
)
def test_a_suggested_limit_is_rounded_up(needed: float, suggested: float) -> None:
    error = BudgetSpentError("max_cost", needed, needed)
    assert error.sufficient_limit == suggested
    assert error.sufficient_limit >= 2 * needed
