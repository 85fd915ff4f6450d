"""``astra-rl info``: versions, settings, presets, scenarios, formats."""

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
                "'scenarios', 'scenario' (one), 'formats' (of export)."
            )
        ),
    ] = "versions",
    name: Annotated[
        str, typer.Argument(help="Name of the preset (default: demo) or scenario.")
    ] = "",
) -> None:
    """Print versions and hardware, all settings, presets, scenarios, or export formats."""
    from astra_rl.cli.topics import print_topic

    print_topic(topic, name, console)
    console.check_written()
