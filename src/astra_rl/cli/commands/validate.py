"""``astra-rl validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.console import console
from astra_rl.cli.costs import print_plan, print_run_estimate
from astra_rl.cli.options import SettingOptions
from astra_rl.cli.target_test_output import print_test_estimate


def validate(
    config_file: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="Configuration of a run.")
    ],
    options: SettingOptions,
) -> None:
    """Check a configuration, its prompts included: loads no model, makes no call.

    Prints the plan, the size of the run, and an upper bound of its endpoint calls and their cost.
    """
    from astra_rl.config.loading import load_config
    from astra_rl.config.resolve import resolve

    plan = resolve(load_config(config_file, options.overrides()))
    print_plan(plan, console)
    if plan.record.is_trained:
        print_run_estimate(plan, console)
    else:
        print_test_estimate(plan)
    console.print_line(f"{config_file} is valid")
