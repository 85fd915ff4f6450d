"""``astra-rl regress``: run a regression suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from astra_rl.cli.budget import check_complete
from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.exit_codes import ExitCode
from astra_rl.cli.options import AsJson, BudgetOptions, Overrides
from astra_rl.cli.output import Output, escaped
from astra_rl.targets.budget import Budget


def regress(
    budget: BudgetOptions,
    suite: Annotated[
        Path, typer.Argument(metavar="SUITE", help="Written by 'export --format regression'.")
    ],
    target: Annotated[str, typer.Option(help="Folder, hub id or YAML file.")],
    run: Annotated[
        Path | None, typer.Option(help="Run whose configuration of target and judge is used.")
    ] = None,
    moderator: Annotated[
        str | None, typer.Option("--moderator", "-m", help="Judge. Default: the run's.")
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Send the attacks of a regression suite to a target; exit code 3 if one succeeds."""
    from astra_rl.actions.regress import regress as send
    from astra_rl.evaluation.show.exports.regression import CaseResult

    quiet_libraries()
    out = Output(as_json=as_json)
    limits = budget.budget
    results = send(
        suite,
        target,
        run=run,
        moderator=moderator,
        overrides=overrides or (),
        budget=None if limits == Budget() else limits,
    )
    table = Table(title=f"{len(results)} cases")
    for column in ("case", "status", "detail", "last attack"):
        table.add_column(column)
    for result in results:
        if result.status != "passed":
            attack = escaped(result.case.attacks[-1].strip()[:100])
            table.add_row(result.case.id, result.status, escaped(result.detail), attack)
    if table.row_count:
        out.table(table)
    passed = sum(result.status == "passed" for result in results)
    out.line(f"{passed} of {len(results)} passed")
    out.data(
        [{"case": each.case.id, "status": each.status, "detail": each.detail} for each in results]
    )
    sent = sum(result.was_sent for result in results)
    check_complete(sent, len(results), "cases were sent and judged")
    if not CaseResult.all_passed(results):
        raise typer.Exit(ExitCode.GATE_FAILED)
