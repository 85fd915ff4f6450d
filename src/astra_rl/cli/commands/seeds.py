"""``astra-rl seeds``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astra_rl.cli.options import Phase, ResultOptions

if TYPE_CHECKING:
    from astra_rl.actions.seeds import Methods


def seeds(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Runs with different seeds, of one configuration or of several to compare, or the "
            "folder of a league.",
        ),
    ],
    result: ResultOptions,
    phase: Phase = "after",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Also write a .json, a table (.csv, .md, .tex for LaTeX) or a figure (.pdf, .png, "
            ".svg).",
        ),
    ] = None,
) -> None:
    """Report how the success rate varies between training seeds, and compare configurations.

    The variation between seeds is reported apart from the interval of each run, which covers the
    sampling of prompts. Runs of several configurations, for instance two algorithms, are compared
    with the first one, paired by seed. --fail-on is checked for every run.
    """
    from astra_rl.actions.league import runs_of_league
    from astra_rl.actions.league_table import LEAGUE_FILE
    from astra_rl.actions.seeds import compare_methods
    from astra_rl.evaluation.show.gate import OF_A_JUDGED_SUMMARY

    out = result.printer(OF_A_JUDGED_SUMMARY)
    folders = [
        each
        for run in runs
        for each in (runs_of_league(run) if (run / LEAGUE_FILE).is_file() else [run])
    ]
    found = compare_methods(folders, phase=phase)
    several = len(found.by_name) > 1
    for name, each in found.by_name.items():
        if several:
            out.line(name)
        out.summaries({f"seed {seed}": row for seed, row in each.summaries.items()})
        out.line(each.spread.text)
    base = next(iter(found.by_name))
    for name, pairs in found.pairs.items():
        value = found.adjusted[name]
        adjusted = f", {value:.3g} adjusted" if value is not None and len(found.pairs) > 1 else ""
        out.line(f"{name} against {base}: {pairs.text}{adjusted}")
    if output is not None:
        _write(found, output)
        out.path("file", output)
    out.data(found.as_dict())
    out.gate(*(row for each in found.by_name.values() for row in each.judged))


def _write(found: Methods, path: Path) -> None:
    from astra_rl.evaluation.show.charts.seeds import FIGURES, write_seed_figure
    from astra_rl.evaluation.show.exports.seed_table import seed_rows, write_seed_table
    from astra_rl.infra.jsonio import write_json

    if path.suffix.lower() == ".json":
        write_json(found.as_dict(), path)
        return
    spreads = {name: each.spread for name, each in found.by_name.items()}
    if path.suffix.lower() in FIGURES:
        curves = {name: each.curves for name, each in found.by_name.items()}
        write_seed_figure(spreads, curves, path)
        return
    write_seed_table(seed_rows(spreads, found.pairs, found.adjusted), path)
