"""``astra-rl compare``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from astra_rl.cli.options import Phase, ResultOptions
from astra_rl.cli.output import as_text

if TYPE_CHECKING:
    from astra_rl.actions.compare import Comparison


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of the first run.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of the second run.")],
    result: ResultOptions,
    phase: Phase = "after",
    phase_b: Annotated[
        str | None, typer.Option(help="Phase of RUN_B. Default: the phase of RUN_A.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File. Default: a file in RUN_A/comparisons."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page with both runs side by side."),
    ] = None,
) -> None:
    """Compare two runs by a paired test on the prompts that both played.

    Lists the attacks that succeed only in RUN_B (differential testing). --fail-on takes
    'difference', 'lower(difference)' and 'upper(difference)': success rate of RUN_A minus that of
    RUN_B.
    """
    from astra_rl.actions.compare import compare_runs
    from astra_rl.evaluation.show.gate import OF_A_COMPARISON
    from astra_rl.infra.jsonio import write_json

    out = result.printer(OF_A_COMPARISON)
    found = compare_runs(run_a, run_b, phase=phase, phase_b=phase_b)
    a, b = found.names
    out.summaries({a: found.a.summary, b: found.b.summary})
    out.pairs(found.pairs, a, b)
    if found.by_category:
        out.table(_table(found))
        out.line("intervals hold for all categories together with 95%; p-values adjusted by Holm")
    out.attacks(f"attacks that succeed only in {b}", found.only_b)
    path = output or found.default_path
    write_json(found.as_dict(), path)
    out.path("comparison", path)
    if html is not None:
        from astra_rl.actions.comparison_page import write_comparison_page

        write_comparison_page(found, run_a, run_b, html, phase=phase, phase_b=phase_b)
        out.path("page", html)
    out.data(found.as_dict())
    out.gate(found.pairs)


def _table(found: Comparison) -> Table:
    from astra_rl.evaluation.stats.percent import signed_percent

    table = Table(title="by category", title_justify="left")
    table.add_column("category")
    for column in ("prompts", "difference", "95% interval", "p"):
        table.add_column(column, justify="right")
    for name, (pairs, p_value) in found.by_category.items():
        low, high = pairs.interval
        table.add_row(
            as_text(name or "no category"),
            str(pairs.prompts),
            signed_percent(pairs.difference),
            f"{low:+.1%} to {high:+.1%}",
            "undecided" if math.isnan(p_value) else f"{p_value:.3g}",
        )
    return table
