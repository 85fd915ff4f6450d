"""``astra-rl export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.options import Phase, Run
from astra_rl.cli.output import Printer


def export(
    run: Run,
    kind: Annotated[
        str, typer.Option("--format", "-f", help="Format; see 'astra-rl info formats'.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File. Default: in the run folder.")
    ] = None,
    phase: Phase = "after",
    safe_replies: Annotated[
        Path | None,
        typer.Option(
            help=(
                "JSONL of attacks and safe replies: the preferred completions of the formats "
                "'preferences' and 'unpaired'."
            )
        ),
    ] = None,
) -> None:
    """Export the conversations of a run to another format, or as a training data set."""
    from astra_rl.actions.export import export_run

    exported = export_run(run, kind, output=output, phase=phase, safe_replies=safe_replies)
    out = Printer()
    out.line(f"written: {exported}")
    out.path("file", exported.path)
