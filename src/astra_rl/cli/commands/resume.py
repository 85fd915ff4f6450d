"""``astra-rl resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.commands.harden import harden
from astra_rl.cli.options import Force, ResultOptions, SettingOptions
from astra_rl.cli.output import Printer
from astra_rl.cli.target_test_output import test_and_print
from astra_rl.cli.training_output import follows_another_process, train_and_print
from astra_rl.distributed.launch import check_one_process


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of an interrupted run.")],
    options: SettingOptions,
    force: Force = False,
) -> None:
    """Resume an interrupted run (bit-exact), a test that ended early, or a hardening."""
    if follows_another_process():
        return
    from astra_rl.config.loading import load_config
    from astra_rl.runs.folder import open_run_folder
    from astra_rl.runs.hardening import HardeningFolder
    from astra_rl.runs.processes import planned

    if HardeningFolder.is_one(run):
        check_one_process("astra-rl harden")
        harden(run, options, ResultOptions())
        return
    folder = open_run_folder(run)
    plan = planned(load_config(folder.config, options.overrides()), folder.path)
    if plan.record.is_trained:
        train_and_print(plan, folder.path, name=run.name, force=force)
        return
    check_one_process("astra-rl test")
    test_and_print(plan, folder.path, Printer(), force=force)
