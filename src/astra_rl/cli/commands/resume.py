"""``astra-rl resume``: continue an interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.options import BudgetOptions, Force, Overrides, overrides_of
from astra_rl.cli.training_output import train_and_print


def resume(
    budget: BudgetOptions,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of an interrupted run.")],
    force: Force = False,
    overrides: Overrides = None,
) -> None:
    """Resume an interrupted run (bit-exact)."""
    from astra_rl.config.loading import load_config
    from astra_rl.runs.folder import open_run_folder

    folder = open_run_folder(run)
    config = load_config(folder.config, overrides_of(overrides, budget))
    train_and_print(config, folder.path, name=run.name, force=force)
