"""``astra-rl league``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.options import AsJson
from astra_rl.cli.output import Printer, as_text

if TYPE_CHECKING:
    from astra_rl.actions.league_table import League
    from astra_rl.runs.folder import RunFolder
    from astra_rl.runs.runner import Display


def league(
    config_file: Annotated[
        Path,
        typer.Argument(metavar="CONFIG.yaml", help="Methods, seeds and budget of the league."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the league. Default: leagues/ and the file's name."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train several methods at equal numbers of target calls, and print what each found.

    The file has 'run' (settings of a run), 'calls', 'seeds', and 'methods' (settings over those of
    'run', by name; 'preset: crt' takes reward, environment, algorithm and training of a preset).
    The same command again keeps the runs that are finished and resumes the others. A run that fails
    does not end the league: it is listed with its reason, the exit code is 2, and the same command
    tries it again.
    """
    from astra_rl.actions.league import run_league
    from astra_rl.cli.display import ConsoleDisplay
    from astra_rl.cli.exit_codes import ExitCode
    from astra_rl.config.league import load_league

    out = Printer(as_json=as_json)
    config = load_league(config_file)
    folder = output or Path("leagues") / config_file.stem
    quiet_libraries()

    def announced(method: str, seed: int, run: RunFolder) -> Display:
        out.line(f"{as_text(method)}, seed {seed}: {run.path}")
        return ConsoleDisplay(out.console)

    command = shlex.join(["astra-rl", *sys.argv[1:]])
    found = run_league(config, folder, command=command, on_cell=announced)
    out.data(found.as_dict())
    out.table(_table(found))
    for lost in found.failed:
        out.line(as_text(str(lost)), style="red")
    out.path("table", folder / "league.md")
    if found.failed:
        raise typer.Exit(ExitCode.USAGE_ERROR)


def _table(found: League) -> Table:
    headings, rows = found.table()
    table = Table(title=f"at most {found.budget:,} target calls; means over seeds, 95% intervals")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(as_text, row))
    return table
