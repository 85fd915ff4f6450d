"""``astra-rl compare``: two runs, paired by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from astra_rl.cli.options import AsJson, FailOn, Phase
from astra_rl.cli.output import Output, conditions_of, escaped

if TYPE_CHECKING:
    from astra_rl.evaluation.records.attempt import Attempt


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run folder.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another run folder.")],
    phase: Phase = "after",
    phase_b: Annotated[
        str | None, typer.Option(help="Phase of RUN_B. Default: the same as of RUN_A.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File. Default: in RUN_A, under comparisons."),
    ] = None,
    fail_on: FailOn = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs on the prompts they share, paired by prompt.

    Lists the attacks that succeed in RUN_B only. --fail-on accepts 'difference',
    'lower(difference)' and 'upper(difference)': the success rate of RUN_A minus that of RUN_B.
    """
    from astra_rl.actions.compare import compare_runs
    from astra_rl.evaluation.show.gate import OF_A_COMPARISON
    from astra_rl.infra.jsonio import write_json

    conditions = conditions_of(fail_on, OF_A_COMPARISON)
    out = Output(as_json=as_json)
    found = compare_runs(run_a, run_b, phase=phase, phase_b=phase_b)
    a, b = found.names
    out.summaries({a: found.a.summary, b: found.b.summary})
    out.pairs(found.pairs, a, b)
    _print_attacks(out, f"successful against {b} only", found.only_b)
    path = output or found.default_path
    write_json(found.as_dict(), path)
    out.path("comparison", path)
    out.data(found.as_dict())
    out.gate(conditions, found.pairs)


def _print_attacks(out: Output, title: str, attempts: Sequence[Attempt], most: int = 10) -> None:
    if not attempts:
        return
    table = Table(title=escaped(title))
    for column in ("score", "attack", "response"):
        table.add_column(column)
    for attempt in attempts[:most]:
        turn = attempt.failing_turn
        if turn is not None:
            texts = (escaped(text.strip()[:120]) for text in (turn.attack, turn.response))
            table.add_row(f"{attempt.score or 0:.2f}", *texts)
    out.table(table)
