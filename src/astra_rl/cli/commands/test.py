"""``astra-rl test``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.options import BudgetOptions, DryRun, ResultOptions, Trials
from astra_rl.cli.target_test_output import print_test_estimate, test_and_print


def test(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help=(
                "URL of an OpenAI-compatible endpoint (with --model), 'package.module:function', a "
                "YAML file, or the folder or hub id of a model."
            ),
        ),
    ],
    budget: BudgetOptions,
    result: ResultOptions,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="File of prompts (csv, txt, jsonl, ...), or the name of a bundled scenario."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help=(
                "What counts as a failure: a moderator's name, a YAML file with one, or the URL of "
                "an endpoint whose model judges harm (with --judge-model). Default: the judge of "
                "the scenario."
            )
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="Scenario in place of --prompts: a name of 'astra-rl info scenarios', or a file."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model at the URL of TARGET.")] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Model at the URL of --judge. Default: --model.")
    ] = None,
    attacker: Annotated[
        str | None,
        typer.Option(
            help=(
                "Model that writes the messages, with each prompt as its goal; it is not trained. "
                "URL of an endpoint, 'package.module:function' or a YAML file. Default: the "
                "prompts are sent as they are."
            )
        ),
    ] = None,
    attacker_model: Annotated[
        str | None, typer.Option(help="Model at the URL of --attacker. Default: --model.")
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help=(
                "How the attacker attacks: best-of-N, feedback-N (up to N attempts), turns-N, or "
                "few-shot (with --examples). Default: one message per prompt."
            )
        ),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="Attacks for few-shot, written by export --format attacks."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Column with the prompts, or FIELD=COLUMN for another field, such as "
                "category=topic. Repeatable. Default: columns named as the fields."
            )
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help=(
                "Score from which a reply is a failure of the target. Default: that of the "
                "scenario if its judge is used, else 0.5."
            )
        ),
    ] = None,
    trials: Trials = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of local models, and of the order under a budget.")
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Run folder. Default: a new folder in ./runs."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Test a target with your own prompts: no training, and an attacker only if you name one.

    Sends each prompt as it is, judges every reply, and writes the report. The run folder is read by
    report, compare, replay, score, export and regress, like that of a training.
    """
    from astra_rl.actions.redteam import plan_target_test, target_test_config
    from astra_rl.evaluation.show.gate import OF_A_JUDGED_SUMMARY

    out = result.printer(OF_A_JUDGED_SUMMARY)
    config = target_test_config(
        target,
        prompts,
        judge,
        scenario=scenario,
        model=model,
        judge_model=judge_model,
        attacker=attacker,
        attacker_model=attacker_model,
        attacks=attacks,
        examples=examples,
        column=_columns(column or ()),
        threshold=threshold,
        trials=trials,
        budget=budget.limits(),
        seed=seed,
    )
    plan = plan_target_test(config)
    if dry_run:
        print_test_estimate(plan)
        return
    test_and_print(plan, output, out)


def _columns(given: Sequence[str]) -> dict[str, str]:
    """Return the columns by field: ``FIELD=COLUMN``, or the column of the prompts."""
    return {
        field if equals else "prompt": column if equals else field
        for field, equals, column in (each.partition("=") for each in given)
    }
