"""``astra-rl view``."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.activity import waiting
from astra_rl.cli.output import Printer


def view(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder; the run may be in progress.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port. Default: any free one.")] = 0,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in your browser.")] = False,
) -> None:
    """Serve the live report of a run on localhost until Ctrl-C.

    Its page "Label" is for raters: as 'astra-rl label', in the browser.
    """
    from astra_rl.runs.folder import open_run_folder
    from astra_rl.runs.report import render_run_page
    from astra_rl.runs.view import LivePage, PageServer

    page = LivePage(open_run_folder(run), render_run_page)
    if hasattr(os, "nice"):
        os.nice(10)  # a training on the same machine has priority
    out = Printer()
    with PageServer(page, port) as server:
        out.line(server.address)
        out.line("Reachable from this machine only. Stop with Ctrl-C.")
        if opens:
            webbrowser.open(server.address)
        try:
            with waiting():
                server.serve_forever()
        except KeyboardInterrupt:
            out.line("stopped")
