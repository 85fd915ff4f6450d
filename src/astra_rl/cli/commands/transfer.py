"""``astra-rl transfer``: every attacker against every target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from astra_rl.cli.budget import check_complete, print_spent
from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.options import AsJson, BudgetOptions, FailOn, Trials
from astra_rl.cli.output import Output, cell, conditions_of, escaped


def transfer(
    budget: BudgetOptions,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, one attacker each.")
    ],
    target: Annotated[
        list[str],
        typer.Option("--target", help="Folder, hub id or YAML file. Can be repeated."),
    ],
    trials: Trials = 1,
    fail_on: FailOn = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate every attacker against every target: which failures transfer.

    The matrix is written as transfer.json to every run folder. --fail-on is checked for every cell;
    the budget covers all cells together.
    """
    from astra_rl.actions.transfer import transfer as play

    quiet_libraries()
    conditions = conditions_of(fail_on)
    out = Output(as_json=as_json)
    found = play(runs, target, trials=trials, overrides=budget.overrides)
    matrix = found.matrix
    table = Table(title="attack success rate on held-out prompts")
    table.add_column("attacker")
    for name in matrix.targets:
        table.add_column(escaped(name), justify="right")
    for attacker in matrix.attackers:
        cells = [cell(matrix.rates.get((attacker, name))) for name in matrix.targets]
        table.add_row(escaped(attacker), *cells)
    out.table(table)
    out.data(matrix.as_dict())
    print_spent(found.spent, out.console)
    summaries = matrix.summaries.values()
    check_complete(
        sum(each.planned - each.never_made for each in summaries),
        sum(each.planned for each in summaries),
    )
    out.gate(conditions, *summaries)
