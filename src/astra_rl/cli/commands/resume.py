"""``astra-rl resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.options import Force, SettingOptions
from astra_rl.cli.output import Printer
from astra_rl.cli.target_test_output import test_and_print
from astra_rl.cli.training_output import train_and_print


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of an interrupted run.")],
    options: SettingOptions,
    force: Force = False,
) -> None:
    """Resume an interrupted run (bit-exact), or a test that a budget or a signal ended."""
    from astra_rl.config.loading import load_config
    from astra_rl.config.resolve import resolve
    from astra_rl.runs.folder import open_run_folder

    folder = open_run_folder(run)
    config = load_config(folder.config, options.overrides())
    if config.attacker is None:
        test_and_print(resolve(config), folder.path, Printer(), force=force)
        return
    train_and_print(config, folder.path, name=run.name, force=force)
