"""``astra-rl demo``: the offline demonstration."""

from __future__ import annotations

from typing import Annotated

import typer

from astra_rl.cli.budget import print_estimate
from astra_rl.cli.console import console
from astra_rl.cli.options import BudgetOptions, DryRun, Output, Overrides, Seed, overrides_of
from astra_rl.cli.training_output import train_and_print

QUICK = ("training.steps=5", "prompts.test=32", "training.max_minutes=0.7")
"""Overrides of --quick."""


def demo(
    budget: BudgetOptions,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="About one minute: checks the installation; too short to learn much."
        ),
    ] = False,
    seed: Seed = None,
    output: Output = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Train an attacker against a small bundled model, offline, in about five minutes.

    The target is a language model with a password in its system prompt that it must not reveal. A
    second copy of the model is trained to extract it and evaluated on held-out passwords, places
    and visitors. The results are the failures, the trained attacker and an HTML report.
    """
    from astra_rl.config.presets import load_preset

    config = load_preset(
        "demo", [*(QUICK if quick else ()), *overrides_of(overrides, budget, seed=seed)]
    )
    if dry_run:
        print_estimate(config, console)
        return
    if quick:
        console.print(
            "[yellow]--quick:[/yellow] a few training steps only, to check the installation; "
            "expect little improvement."
        )
    train_and_print(config, output, name="demo-quick" if quick else "demo")
