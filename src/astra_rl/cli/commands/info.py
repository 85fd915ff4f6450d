"""``astra-rl info``: versions, settings, presets, scenarios, formats, and what can be named."""

from __future__ import annotations

from typing import Annotated

import typer

from astra_rl.cli.console import console


def info(
    topic: Annotated[
        str,
        typer.Argument(
            help=(
                "'versions', 'config' (all settings), 'presets', 'preset' (one as YAML), "
                "'scenarios', 'scenario' (one), 'formats' (of export); 'algorithms', "
                "'environments', 'moderators', 'rewards', 'targets' (all, or the options of one); "
                "or any name that 'astra-rl list' shows."
            )
        ),
    ] = "versions",
    name: Annotated[
        str,
        typer.Argument(help="Name of the preset (default: demo), scenario, algorithm and so on."),
    ] = "",
) -> None:
    """Print versions and hardware, all settings, presets, scenarios, or what can be named."""
    from astra_rl.cli.topics import print_topic

    print_topic(topic, name, console)
    console.check_written()
