"""``astra-rl export``: conversations in other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.options import Phase, Run
from astra_rl.cli.output import Output


def export(
    run: Run,
    kind: Annotated[
        str, typer.Option("--format", "-f", help="Format; 'astra-rl info formats' lists them.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File. Default: in the run folder.")
    ] = None,
    phase: Phase = "after",
    safe_replies: Annotated[
        Path | None,
        typer.Option(help="JSONL of 'attack' and 'reply': chosen replies for TRL's formats."),
    ] = None,
) -> None:
    """Export the conversations of a run to another format, or as training data."""
    from astra_rl.actions.export import export_run

    found = export_run(run, kind, output=output, phase=phase, safe_replies=safe_replies)
    out = Output()
    out.line(f"{found.written} written")
    out.path("file", found.path)
