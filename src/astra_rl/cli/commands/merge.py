"""``astra-rl merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.commands.evaluate import EvaluationOptions, gate_evaluated, print_evaluated
from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.options import ResultOptions, Run
from astra_rl.infra.user_files import user_path


def merge(
    run: Run,
    options: EvaluationOptions,
    result: ResultOptions,
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER]...",
            help="Folders that the parts were written to with --output. Default: the results.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Target: a folder, hub id or YAML file. Default: that of the run."),
    ] = None,
) -> None:
    """Put the parts of 'evaluate --shard' together.

    Give the options that the parts were played with. All parts must be there, and be of the same
    configuration, seed, models, judge and versions. The result equals that of one process but for
    the times. No model is loaded and no endpoint called.
    """
    from astra_rl.actions.merge import merge_shards
    from astra_rl.evaluation.show.gate import OF_A_JUDGED_SUMMARY

    out = result.printer(OF_A_JUDGED_SUMMARY)
    quiet_libraries()
    found = [
        merge_shards(
            run,
            [user_path(each) for each in places or ()],
            target=target,
            output=options.output,
            **options.played(),
        )
    ]
    print_evaluated(found, options.attacks or "attacker", out)
    gate_evaluated(found, out)
