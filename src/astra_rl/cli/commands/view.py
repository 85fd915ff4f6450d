"""``astra-rl view``: the live report of a run."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.console import console


def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, finished or running.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Default: any free port.")] = 0,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Serve the report of a run on localhost and update it while the run continues.

    Ctrl-C stops the server.
    """
    from astra_rl.runs.folder import open_run_folder
    from astra_rl.runs.report import render_run_page
    from astra_rl.runs.view import LivePage, PageServer

    page = LivePage(open_run_folder(run), render_run_page)
    if hasattr(os, "nice"):  # not on Windows
        os.nice(10)  # the training has priority
    with PageServer(page, port) as server:
        console.print(server.address, highlight=False, soft_wrap=True, markup=False)
        console.print("Reachable from this machine only. Ctrl-C stops it.", highlight=False)
        if opens:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("stopped", highlight=False)
