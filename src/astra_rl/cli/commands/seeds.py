"""``astra-rl seeds``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.options import Phase, ResultOptions


def seeds(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Runs whose configurations differ by seed only."),
    ],
    result: ResultOptions,
    phase: Phase = "after",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the results to this file.")
    ] = None,
) -> None:
    """Report how the success rate varies between training seeds.

    The variation between seeds is reported apart from the interval of each run, which covers the
    sampling of prompts. --fail-on is checked for every seed.
    """
    from astra_rl.actions.seeds import compare_seeds
    from astra_rl.infra.jsonio import write_json

    out = result.printer()
    found = compare_seeds(runs, phase=phase)
    out.summaries({f"seed {seed}": each for seed, each in found.summaries.items()})
    out.line(found.spread.text)
    if output is not None:
        write_json(found.as_dict(), output)
        out.path("file", output)
    out.data(found.as_dict())
    out.gate(*found.summaries.values())
