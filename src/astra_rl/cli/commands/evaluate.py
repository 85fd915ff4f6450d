"""``astra-rl evaluate``: play the held-out conversations again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from astra_rl.cli.budget import check_complete, print_rows, print_spent
from astra_rl.cli.console import console, quiet_libraries
from astra_rl.cli.options import (
    AsJson,
    BudgetOptions,
    DryRun,
    FailOn,
    Overrides,
    Run,
    Trials,
    overrides_of,
)
from astra_rl.cli.output import Output, conditions_of
from astra_rl.cli.training_output import print_evaluations


def evaluate(
    budget: BudgetOptions,
    run: Run,
    attacker: Annotated[
        str | None,
        typer.Option(help="Another attacker: folder or hub id. Default: the run's last checkpoint."),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help=(
                "Attacks instead of an attacker: a file (txt, or jsonl with 'attack'), or a "
                "baseline: 'direct' (the goal of each prompt itself), 'untrained', 'best-of-8' (of "
                "the untrained attacker, chosen by the reward), 'few-shot' (the untrained attacker "
                "with its own best attacks as examples)."
            )
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Another target: folder, hub id or YAML file. Can be repeated. Default: the run's."
        ),
    ] = None,
    trials: Trials = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results. Default: RUN.")
    ] = None,
    fail_on: FailOn = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Evaluate a trained attacker or a baseline against one or several targets.

    Plays the held-out conversations of the run's configuration and writes evaluation_again.json,
    or for a baseline evaluation_direct.json and so on, with the failures. --fail-on is checked for
    every target.
    """
    from astra_rl.actions.evaluate import estimate_evaluation, evaluate_run

    conditions = conditions_of(fail_on)
    quiet_libraries()
    what: dict[str, Any] = {
        "attacker": attacker,
        "attacks": attacks,
        "targets": target or (),
        "trials": trials,
        "overrides": overrides_of(overrides, budget),
    }
    if dry_run:
        for name, rows in estimate_evaluation(run, **what).items():
            console.print(f"target: {name}", highlight=False, markup=False)
            print_rows(rows, console)
        return
    out = Output(as_json=as_json)
    found = evaluate_run(run, **what, output=output)
    name = attacks or "attacker"
    named = {name if len(found) == 1 else f"against {each.target}": each for each in found}
    print_evaluations(named, out)
    out.summaries({key: each.summary for key, each in named.items()})
    for each in found:
        out.path("result", each.path)
    for each in found:
        print_spent(each.metrics["spent"], out.console)
    out.data([{"target": each.target, **each.summary.as_dict()} for each in found])
    for each in found:
        check_complete(each.metrics["n"], each.metrics["planned"])
    check_complete(len(found), len(set(target or ("",))), "targets were evaluated")
    out.gate(conditions, *(each.summary for each in found))
