"""``astra-rl evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astra_rl.cli.console import console, quiet_libraries
from astra_rl.cli.costs import check_all_done, print_estimate, print_spent
from astra_rl.cli.options import DryRun, ResultOptions, Run, SettingOptions, Trials
from astra_rl.cli.output import Printer
from astra_rl.cli.training_output import print_evaluations

if TYPE_CHECKING:
    from astra_rl.actions.evaluation_job import Evaluated
    from astra_rl.config.estimate import Estimate


def evaluate(
    run: Run,
    options: SettingOptions,
    result: ResultOptions,
    attacker: Annotated[
        str | None,
        typer.Option(help="Attacker: a folder or hub id. Default: the last one of the run."),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help=(
                "Baseline instead of the attacker: a file of attacks (txt, or jsonl with "
                "'attack'), 'direct' (the goal of each prompt, verbatim), 'untrained' (the "
                "attacker before training), 'best-of-8' (the best of 8 untrained attacks, by "
                "reward) or 'few-shot' (the untrained attacker with successful attacks in its "
                "prompt)."
            )
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Target: a folder, hub id or YAML file. Repeatable. Default: the target of the run."
            )
        ),
    ] = None,
    trials: Trials = 1,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help=(
                "Stop when this is decided, for instance 'upper(asr)<0.05'. The interval then "
                "holds at every time (confidence sequence); the same command continues."
            ),
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results. Default: RUN.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Evaluate a trained attacker, or a baseline, against one or more targets.

    Plays the held-out conversations of the run's configuration. Writes evaluation_again.json (for a
    baseline evaluation_direct.json and so on) and the successful attacks. --fail-on is checked for
    every target.
    """
    from astra_rl.actions.evaluate import estimate_evaluation, evaluate_run
    from astra_rl.evaluation.judges.quality import JudgedSummary
    from astra_rl.evaluation.show.gate import OF_A_JUDGED_SUMMARY

    out = result.printer(OF_A_JUDGED_SUMMARY)
    quiet_libraries()
    overrides, targets = options.overrides(), target or ()
    if dry_run:
        _print_estimates(
            estimate_evaluation(
                run,
                attacker=attacker,
                attacks=attacks,
                targets=targets,
                trials=trials,
                overrides=overrides,
            )
        )
        return
    found = evaluate_run(
        run,
        attacker=attacker,
        attacks=attacks,
        targets=targets,
        trials=trials,
        overrides=overrides,
        output=output,
        until=until,
    )
    _print(found, attacks or "attacker", out)
    for each in found:
        check_all_done(each.metrics["n"], each.metrics["planned"])
    check_all_done(len(found), len(set(targets or ("",))), "targets were evaluated")
    out.gate(*(JudgedSummary.of(each.summary, each.metrics) for each in found))


def _print_estimates(estimates: Mapping[str, Estimate]) -> None:
    whole = reduce(add, estimates.values())  # all targets share one budget
    for index, (target, each) in enumerate(estimates.items(), start=1):
        console.print(f"target: {target}", highlight=False, markup=False)
        print_estimate(each.rows, console, whole.ends if index == len(estimates) else ())


def _print(found: Sequence[Evaluated], name: str, out: Printer) -> None:
    named = {name if len(found) == 1 else f"against {each.target}": each for each in found}
    print_evaluations(named, out)
    out.summaries({key: each.summary for key, each in named.items()})
    for key, each in named.items():
        if each.metrics["until"] is not None:
            undecided = f"{each.metrics['until']}: undecided after all planned conversations"
            out.line(f"{key}: {each.metrics['decided'] or undecided}")
    for each in found:
        out.path("result", each.path)
    for each in found:
        print_spent(each.metrics["spent"], out.console)
    out.data(
        [
            {
                "target": each.target,
                **each.summary.as_dict(),
                "diversity": each.metrics["diversity"],
            }
            for each in found
        ]
    )
