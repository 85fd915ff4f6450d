"""``astra-rl regress``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.costs import check_all_done
from astra_rl.cli.exit_codes import ExitCode
from astra_rl.cli.options import ResultOptions, SettingOptions, Trials
from astra_rl.cli.output import Printer, as_text

if TYPE_CHECKING:
    from astra_rl.evaluation.show.exports.regression import CaseResult


def regress(
    suite: Annotated[
        Path,
        typer.Argument(metavar="SUITE", help="Suite, as written by export --format regression."),
    ],
    target: Annotated[str, typer.Option(help="Target: a folder, hub id or YAML file.")],
    options: SettingOptions,
    result: ResultOptions,
    run: Annotated[
        Path | None,
        typer.Option(help="Run whose settings of the target and the judge are used."),
    ] = None,
    moderator: Annotated[
        str | None, typer.Option("--moderator", "-m", help="Judge. Default: the judge of the run.")
    ] = None,
    trials: Trials = 1,
) -> None:
    """Run a regression suite against a target; exit code 3 unless every case passes.

    With --fail-on, conditions on the success rate of all trials decide instead, for instance
    'upper(asr_corrected)>0.1' for a judge that sometimes errs.
    """
    from astra_rl.actions.regress import regress as run_suite
    from astra_rl.evaluation.judges.quality import JudgedSummary, describe_judge
    from astra_rl.evaluation.show.exports.regression import CaseResult
    from astra_rl.evaluation.show.gate import OF_A_JUDGED_SUMMARY

    out = result.printer(OF_A_JUDGED_SUMMARY)
    quiet_libraries()
    found = run_suite(
        suite,
        target,
        run=run,
        moderator=moderator,
        overrides=options.settings or (),
        budget=options.budget(),
        trials=trials,
    )
    _print(found.cases, out)
    for line in describe_judge(found.quality, found.summary):
        out.line(f"judge: {line}")
    sent = sum(each.was_sent for each in found.cases)
    check_all_done(sent, len(found.cases), "cases were sent, judged")
    if result.fail_on:
        out.gate(JudgedSummary(found.summary, found.quality))
    elif not CaseResult.all_passed(found.cases):
        raise typer.Exit(ExitCode.GATE_FAILED)


def _print(results: Sequence[CaseResult], out: Printer) -> None:
    table = Table(title=f"{len(results)} cases")
    for column in ("case", "status", "detail", "last attack"):
        table.add_column(column)
    for result in results:
        if result.status != "passed":
            attack = as_text(result.case.attacks[-1].strip()[:100])
            table.add_row(result.case.id, result.status, as_text(result.detail), attack)
    if table.row_count:
        out.table(table)
    passed = sum(result.status == "passed" for result in results)
    out.line(f"{passed} of {len(results)} passed")
    out.data(
        [
            {
                "case": each.case.id,
                "status": each.status,
                "detail": each.detail,
                "rate": each.rate.as_dict(),
            }
            for each in results
        ]
    )
