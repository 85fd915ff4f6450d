"""``astra-rl report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.options import Run
from astra_rl.cli.output import Printer


def report(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File. Default: RUN/report.html.")
    ] = None,
) -> None:
    """Write the HTML report of a run from the files in its folder.

    Includes the results of 'score', 'evaluate' and 'transfer'. Also works while the run is in
    progress.
    """
    from astra_rl.runs.folder import open_run_folder
    from astra_rl.runs.report import write_run_page

    Printer().path("report", write_run_page(open_run_folder(run), output))
