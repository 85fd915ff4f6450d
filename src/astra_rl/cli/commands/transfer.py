"""``astra-rl transfer``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.costs import check_all_done, print_spent
from astra_rl.cli.options import BudgetOptions, ResultOptions, Trials
from astra_rl.cli.output import as_text, cell

if TYPE_CHECKING:
    from astra_rl.evaluation.measures.transfer_matrix import TransferMatrix


def transfer(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, one attacker each.")
    ],
    target: Annotated[
        list[str],
        typer.Option("--target", help="Target: a folder, hub id or YAML file. Repeatable."),
    ],
    budget: BudgetOptions,
    result: ResultOptions,
    trials: Trials = 1,
) -> None:
    """Evaluate every attacker against every target: the transfer matrix.

    Writes transfer.json into every run folder. --fail-on is checked for every pair of attacker and
    target. The budget covers all pairs together.
    """
    from astra_rl.actions.transfer import transfer as transfer_runs
    from astra_rl.evaluation.show.gate import OF_A_JUDGED_SUMMARY

    out = result.printer(OF_A_JUDGED_SUMMARY)
    quiet_libraries()
    found = transfer_runs(runs, target, trials=trials, overrides=budget.overrides())
    out.table(_table(found.matrix))
    out.data(found.matrix.as_dict())
    print_spent(found.spent, out.console)
    summaries = found.matrix.summaries.values()
    check_all_done(
        sum(each.planned - each.never_made for each in summaries),
        sum(each.planned for each in summaries),
    )
    out.gate(*found.judged)


def _table(matrix: TransferMatrix) -> Table:
    table = Table(title="attack success rate on held-out conversations")
    table.add_column("attacker")
    for name in matrix.targets:
        table.add_column(as_text(name), justify="right")
    for attacker in matrix.attackers:
        cells = [cell(matrix.rates.get((attacker, name))) for name in matrix.targets]
        table.add_row(as_text(attacker), *cells)
    return table
