"""``astra-rl train``: one run from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.budget import print_estimate
from astra_rl.cli.console import console
from astra_rl.cli.options import (
    BudgetOptions,
    DryRun,
    Force,
    Output,
    Overrides,
    Seed,
    overrides_of,
)
from astra_rl.cli.training_output import train_and_print


def train(
    budget: BudgetOptions,
    config_file: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml", help="Configuration; 'astra-rl info config' lists all settings."
        ),
    ],
    seed: Seed = None,
    output: Output = None,
    force: Force = False,
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Train an attacker from a YAML configuration, evaluate it, and write a report.

    The configuration is checked before any model is loaded. 'astra-rl info preset demo' prints one
    to start from. If --output is the folder of an interrupted run, the run is resumed.
    """
    from astra_rl.config.loading import load_config

    config = load_config(config_file, overrides_of(overrides, budget, seed=seed))
    if dry_run:
        print_estimate(config, console)
        return
    train_and_print(config, output, name=config_file.stem, force=force)
