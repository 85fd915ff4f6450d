"""``astra-rl demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from astra_rl.cli.console import console
from astra_rl.cli.costs import print_run_estimate
from astra_rl.cli.options import RunOptions
from astra_rl.cli.training_output import train_and_print

QUICK = (
    "training.steps=3",
    "training.warmup_steps=0",
    "prompts.test=32",
    "training.max_minutes=null",
)
"""Settings of ``--quick``."""


def demo(
    options: RunOptions,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Finish in about one minute: checks the installation, hardly trains the attacker.",
        ),
    ] = False,
) -> None:
    """Train an attacker against a small real model, offline, in about five minutes.

    The target is a small language model whose system prompt holds a password that it must not
    reveal. The attacker is trained to extract it, and evaluated on passwords, places and visitors
    that are not in the training prompts. The run folder holds the successful attacks, the attacker
    and an HTML report.
    """
    from astra_rl.config.presets import load_preset
    from astra_rl.config.resolve import resolve

    plan = resolve(load_preset("demo", [*(QUICK if quick else ()), *options.overrides()]))
    if options.dry_run:
        print_run_estimate(plan, console)
        return
    if quick:
        console.print(
            "[yellow]--quick:[/yellow] a few training steps only. It checks that everything works; "
            "the success rate may not change."
        )
    train_and_print(plan, options.output, name="demo-quick" if quick else "demo")
    if quick:
        console.print(
            "everything works. Three steps and 32 conversations say little of what the attacker "
            "can learn: 'astra-rl demo' trains it, in about five minutes.",
            highlight=False,
            soft_wrap=True,
        )
