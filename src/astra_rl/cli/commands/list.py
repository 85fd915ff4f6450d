"""``astra-rl list``: what a configuration or a command may name, with a line on each."""

from __future__ import annotations

from typing import Annotated

import typer

from astra_rl.cli.console import console


def list(
    kind: Annotated[
        str,
        typer.Argument(
            help=(
                "'algorithms', 'environments', 'moderators', 'presets', 'rewards', 'scenarios' or "
                "'targets'. Default: all of them."
            )
        ),
    ] = "",
) -> None:
    """List algorithms, environments, moderators, presets, rewards, scenarios and targets.

    'astra-rl info NAME' shows one with its options.
    """
    from astra_rl.cli.topics import print_list

    print_list(kind, console)
    console.check_written()
