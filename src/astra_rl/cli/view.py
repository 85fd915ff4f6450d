"""``astra-rl view``: the page of a run, live. Thin over `astra_rl.runs.view`."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path

from rich.console import Console

from astra_rl.runs.folder import open_run_folder
from astra_rl.runs.report import render_run_page
from astra_rl.runs.view import LivePage, PageServer


def view_run(run: Path, *, port: int, opens: bool, console: Console) -> None:
    """Serve the page of a run until somebody ends it.

    Raises:
        AstraError: The folder is no run, or the port cannot be had.
    """
    page = LivePage(open_run_folder(run), render_run_page)
    if hasattr(os, "nice"):
        os.nice(10)  # the training comes first
    with PageServer(page, port) as server:
        console.print(server.address, highlight=False, soft_wrap=True, markup=False)
        console.print("Only this machine can open it. Ctrl-C ends it.", highlight=False)
        if opens:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("ended", highlight=False)
