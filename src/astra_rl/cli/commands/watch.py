"""``astra-rl watch``."""

from __future__ import annotations

from astra_rl.cli.activity import waiting
from astra_rl.cli.console import console
from astra_rl.cli.options import Run


def watch(run: Run) -> None:
    """Show a run in progress on the terminal: curves, latest successes, speed, spending.

    Needs the extra 'screen'. Where the output is no terminal, it is plain lines, once. 'astra-rl
    view' shows the report in the browser.
    """
    from astra_rl.cli.screen import plain_lines, screen
    from astra_rl.runs.folder import open_run_folder
    from astra_rl.runs.progress import read_progress

    folder = open_run_folder(run)
    if console.is_terminal:
        with waiting():
            screen(folder).run()
        return
    for line in plain_lines(read_progress(folder)):
        console.print_line(line)
    console.check_written()
