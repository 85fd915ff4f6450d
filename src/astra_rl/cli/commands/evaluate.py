"""``astra-rl evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from astra_rl.cli.console import console, quiet_libraries
from astra_rl.cli.costs import check_all_done, print_estimate, print_spent
from astra_rl.cli.options import DryRun, ResultOptions, Run, SettingOptions, Trials
from astra_rl.cli.output import Printer
from astra_rl.cli.training_output import print_evaluations

if TYPE_CHECKING:
    from astra_rl.actions.evaluation_job import Evaluated
    from astra_rl.config.estimate import Estimate


@dataclass(frozen=True)
class EvaluationOptions(SettingOptions):
    """What an evaluation of a run plays; the shards of one have the same, and so has its merge."""

    attacker: Annotated[
        str | None,
        typer.Option(help="Attacker: a folder or hub id. Default: the last one of the run."),
    ] = None
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
    ] = None
    trials: Trials = 1
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results. Default: RUN.")
    ] = None

    def played(self) -> dict[str, Any]:
        """Return them as arguments of `evaluate_run`, without the folder of the results."""
        return {
            "attacker": self.attacker,
            "attacks": self.attacks,
            "trials": self.trials,
            "overrides": self.overrides(),
        }


def evaluate(
    run: Run,
    options: EvaluationOptions,
    result: ResultOptions,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Target: a folder, hub id or YAML file. Repeatable. Default: the target of the run."
            )
        ),
    ] = None,
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
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help=(
                "Play part I of N, with its part of the budget, for instance on one of N machines; "
                "'merge' puts the parts together. The same command continues a part."
            ),
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Evaluate a trained attacker, or a baseline, against one or more targets.

    Plays the held-out conversations of the run's configuration. Writes evaluation_again.json (for a
    baseline evaluation_direct.json and so on) and the successful attacks. --fail-on is checked for
    every target.
    """
    from astra_rl.actions.evaluate import estimate_evaluation, evaluate_run
    from astra_rl.evaluation.show.gate import OF_A_JUDGED_SUMMARY
    from astra_rl.runs.shards import Shard

    out = result.printer(OF_A_JUDGED_SUMMARY)
    quiet_libraries()
    part = None if shard is None else Shard.parse(shard)
    targets = target or ()
    if dry_run:
        _print_estimates(estimate_evaluation(run, targets=targets, **options.played()))
        return
    found = evaluate_run(
        run,
        targets=targets,
        output=options.output,
        until=until,
        shard=part,
        **options.played(),
    )
    print_evaluated(found, options.attacks or "attacker", out)
    check_all_done(len(found), len(set(targets or ("",))), "targets were evaluated")
    gate_evaluated(found, out)


def _print_estimates(estimates: Mapping[str, Estimate]) -> None:
    whole = reduce(add, estimates.values())  # all targets share one budget
    for index, (target, each) in enumerate(estimates.items(), start=1):
        console.print(f"target: {target}", highlight=False, markup=False)
        print_estimate(each.rows, console, whole.ends if index == len(estimates) else ())


def gate_evaluated(found: Sequence[Evaluated], out: Printer) -> None:
    """Check the conditions of --fail-on on every evaluation."""
    from astra_rl.evaluation.judges.quality import JudgedSummary

    out.gate(*(JudgedSummary.of(each.summary, each.metrics) for each in found))


def print_evaluated(found: Sequence[Evaluated], name: str, out: Printer) -> None:
    """Print evaluations, and raise the error of an exhausted budget unless they are complete.

    Args:
        found: One per target.
        name: What was evaluated.
        out: Where it is printed.

    Raises:
        BudgetEndedError: A budget ended one of them.
    """
    named = {name if len(found) == 1 else f"against {each.target}": each for each in found}
    print_evaluations(named, out)
    out.summaries({key: each.summary for key, each in named.items()})
    for key, each in named.items():
        if each.metrics["until"] is not None:
            undecided = f"{each.metrics['until']}: undecided after all planned conversations"
            out.line(f"{key}: {each.metrics['decided'] or undecided}")
            if each.metrics["decided"]:
                out.line("the estimate leans toward what was decided; the interval holds")
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
    for each in found:
        check_all_done(each.metrics["n"], each.metrics["planned"])
