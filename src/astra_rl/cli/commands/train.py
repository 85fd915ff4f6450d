"""``astra-rl train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.console import console
from astra_rl.cli.costs import print_run_estimate
from astra_rl.cli.options import Force, RunOptions
from astra_rl.cli.output import Printer
from astra_rl.cli.target_test_output import print_test_estimate, test_and_print
from astra_rl.cli.training_output import follows_another_process, train_and_print
from astra_rl.distributed.launch import check_one_process


def train(
    config_file: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml", help="Configuration of the run; see 'astra-rl info config'."
        ),
    ],
    options: RunOptions,
    force: Force = False,
) -> None:
    """Train an attacker from a YAML configuration, evaluate it, and write a report.

    The configuration is checked before any model is loaded. 'astra-rl info preset demo' prints one
    to start from. If --output is the folder of an interrupted run, that run is resumed. On several
    processes: 'torchrun --nproc-per-node 4 -m astra_rl train CONFIG.yaml', or accelerate launch.
    """
    if options.dry_run:
        check_one_process("astra-rl train --dry-run")
    if follows_another_process():
        return
    from astra_rl.config.loading import load_config
    from astra_rl.config.resolve import resolve

    config = load_config(config_file, options.overrides())
    if options.dry_run:
        plan = resolve(config)
        if plan.attacker is None:
            print_run_estimate(plan, console)
        else:  # nothing is trained: the attacker is prompted
            print_test_estimate(plan)
        return
    from astra_rl.runs.processes import planned

    plan = planned(config, options.output)
    if plan.attacker is None:
        train_and_print(plan, options.output, name=config_file.stem, force=force)
        return
    check_one_process("astra-rl train without training steps")
    test_and_print(plan, options.output, Printer(), name=config_file.stem, force=force)
