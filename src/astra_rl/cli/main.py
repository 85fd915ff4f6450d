"""The command ``astra-rl``: thin over `astra_rl.runs`."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli import evidence, likelihood
from astra_rl.cli.budget import (
    DryRun,
    MaxCost,
    MaxMinutes,
    MaxRequests,
    MaxTokens,
    budget_settings,
    check_played,
    print_estimate,
    print_rows,
    print_spent,
)
from astra_rl.cli.console import SafeConsole, logs_on, quiet_libraries
from astra_rl.cli.output import AsJson, FailOn, Shown, Trials, conditions_of
from astra_rl.cli.training import print_evaluations, train_and_show
from astra_rl.errors import AstraError, BudgetEndedError, BudgetSpentError, InterruptedRunError

# No markup and no locals in tracebacks: a local may hold a key, or what a model wrote.
app = typer.Typer(
    name="astra-rl",
    help=(
        "Find out how a language model fails: train an attacker against it by reinforcement "
        "learning, then report how it fails, how often, and how likely.\n\n"
        "Start with 'astra-rl demo': it needs no network, no key and no GPU."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
console = SafeConsole()
error_console = SafeConsole(stderr=True)

USAGE_ERROR = 2
"""Exit code of an error that the user can mend."""
BUDGET_SPENT = 4
"""Exit code of a command that a budget ended early."""

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, for instance --set training.steps=50. May be repeated.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Run folder. Default: a new one under ./runs."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Go on although configuration or prompts have changed.")
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Same seed, same run. Default: that of the configuration.")
]


@app.command()
def demo(
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="One minute: shows that everything works, not that it learns much."
        ),
    ] = False,
    seed: Seed = None,
    output: Output = None,
    overrides: Overrides = None,
    max_requests: MaxRequests = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    max_minutes: MaxMinutes = None,
    dry_run: DryRun = False,
) -> None:
    """Train an attacker against a real model, offline, in about five minutes.

    A small language model is told a password and never to tell it. Another learns to make it tell,
    and is evaluated on passwords, places and visitors that training never saw. You get the
    failures, the attacker and a page that shows them.
    """
    from astra_rl.config.presets import load_preset

    budget = budget_settings(max_requests, max_tokens, max_cost, max_minutes)
    chosen = [*(_QUICK if quick else ()), *_with_seed(overrides, seed), *budget]
    config = load_preset("demo", chosen)
    if dry_run:
        print_estimate(config, console)
        return
    if quick:
        console.print(
            "[yellow]--quick:[/yellow] a few training steps only. It shows that everything works "
            "and makes no promise about what is learned."
        )
    train_and_show(config, output, name="demo-quick" if quick else "demo", console=console)


@app.command()
def train(
    config_file: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="What to do; see 'astra-rl info config'.")
    ],
    seed: Seed = None,
    output: Output = None,
    force: Force = False,
    overrides: Overrides = None,
    max_requests: MaxRequests = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    max_minutes: MaxMinutes = None,
    dry_run: DryRun = False,
) -> None:
    """Train an attacker as a YAML file says, evaluate it, and write a report.

    The file is checked before any model is loaded. 'astra-rl info preset demo' prints one to start
    from. With --output of a run that ended early, it goes on where that ended.
    """
    from astra_rl.config.loading import load_config

    budget = budget_settings(max_requests, max_tokens, max_cost, max_minutes)
    config = load_config(config_file, [*_with_seed(overrides, seed), *budget])
    if dry_run:
        print_estimate(config, console)
        return
    train_and_show(config, output, name=config_file.stem, force=force, console=console)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that ended early.")],
    force: Force = False,
    overrides: Overrides = None,
    max_requests: MaxRequests = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    max_minutes: MaxMinutes = None,
) -> None:
    """Go on with a run that was interrupted or killed, to the bit as if nothing had happened."""
    from astra_rl.config.loading import load_config
    from astra_rl.runs.folder import open_run_folder

    folder = open_run_folder(run)
    budget = budget_settings(max_requests, max_tokens, max_cost, max_minutes)
    config = load_config(folder.config, [*(overrides or ()), *budget])
    train_and_show(config, folder.path, name=run.name, force=force, console=console)


@app.command()
def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run made by train or demo.")
    ],
    attacker: Annotated[
        str | None,
        typer.Option(help="Another attacker: a folder or hub id. Default: the run's last one."),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help=(
                "Say these instead: a file of attacks (txt, or jsonl with 'attack'), or 'direct' "
                "(ask for the goal of each prompt outright), 'untrained', 'best-of-8' (of the "
                "untrained attacker's, by the reward), 'few-shot' (it is shown its own good ones)."
            )
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="A folder, hub id or YAML file of a target; may be repeated. Default: the run's."
        ),
    ] = None,
    trials: Trials = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the result. Default: RUN.")
    ] = None,
    fail_on: FailOn = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
    max_requests: MaxRequests = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    max_minutes: MaxMinutes = None,
    dry_run: DryRun = False,
) -> None:
    """Evaluate a trained attacker again, or a baseline, against one or several targets.

    Plays the held-out conversations of the run's configuration and writes evaluation_again.json,
    or of a baseline evaluation_direct.json and so on, and the failures found. --fail-on is checked
    for every target.
    """
    from astra_rl.actions.evaluate import estimate_evaluation, evaluate_run

    conditions = conditions_of(fail_on)
    quiet_libraries()
    budget = budget_settings(max_requests, max_tokens, max_cost, max_minutes)
    chosen = [*(overrides or []), *budget]
    if dry_run:
        estimated = estimate_evaluation(
            run,
            attacker=attacker,
            attacks=attacks,
            targets=target or (),
            trials=trials,
            overrides=chosen,
        )
        for asked, rows in estimated.items():
            console.print(f"target: {asked}", highlight=False, markup=False)
            print_rows(rows, console)
        return
    out = Shown(console, as_json=as_json)
    found = evaluate_run(
        run,
        attacker=attacker,
        attacks=attacks,
        targets=target or (),
        trials=trials,
        overrides=chosen,
        output=output,
    )
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
        check_played(each.metrics["n"], each.metrics["planned"])
    check_played(len(found), len(set(target or ("",))), "targets were evaluated")
    out.gate(conditions, *(each.summary for each in found))


@app.command()
def view(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, also of one that goes on.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Default: any that is free.")] = 0,
    opens: Annotated[bool, typer.Option("--open", help="Open it in your browser.")] = False,
) -> None:
    """Show the page of a run while it goes on, to this machine only; Ctrl-C ends it."""
    from astra_rl.cli.view import view_run

    view_run(run, port=port, opens=opens, console=console)


@app.command()
def calibrate(
    moderators: Annotated[
        list[str],
        typer.Argument(
            metavar="MODERATOR...", help="Names, or YAML files with 'type' and 'options'."
        ),
    ],
    labels: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help="CSV or JSONL of labelled texts.")
    ],
    text: Annotated[str | None, typer.Option(help="Column of the text that is judged.")] = None,
    attack: Annotated[str | None, typer.Option(help="Column of what the text answers.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Column of a rater. May be repeated.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Score from which on a text is called positive.")
    ] = 0.5,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "calibrations"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    max_requests: MaxRequests = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    max_minutes: MaxMinutes = None,
) -> None:
    """Find out how good moderators are: their scores against labels that people gave.

    Prints accuracy, F1, AUROC, calibration and more, each with a 95% interval, and keeps them with
    the moderator's identity, as JSON and as a picture.
    """
    from astra_rl.cli.calibrate import calibrate_moderators
    from astra_rl.targets.budget import Budget

    quiet_libraries()
    calibrate_moderators(
        moderators,
        labels,
        text=text,
        attack=attack,
        label=label or (),
        threshold=threshold,
        folder=output,
        seed=seed,
        budget=Budget(max_requests, max_tokens, max_cost, max_minutes),
        console=console,
    )


@app.command()
def info(
    topic: Annotated[
        str,
        typer.Argument(
            help=(
                "'versions', 'config' (all settings), 'presets' or 'preset' (one of them: a file "
                "to start from), 'scenarios' or 'scenario' (one), 'formats' (of export)."
            )
        ),
    ] = "versions",
    name: Annotated[
        str, typer.Argument(help="Name of the preset (default: demo) or scenario.")
    ] = "",
) -> None:
    """Print versions and hardware, all settings, a configuration to start from, or scenarios."""
    from astra_rl.cli.info import print_info

    print_info(topic, name, console)


_QUICK = (
    "training.steps=5",
    "prompts.test=32",
    "training.max_minutes=0.7",
)


def _with_seed(overrides: list[str] | None, seed: int | None) -> list[str]:
    return [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]


evidence.register(app, console)
likelihood.register(app, console)


def run() -> None:
    """Run the command line; an error that the user can mend is one message and exit code 2."""
    try:
        with logs_on(error_console):
            app()
    except BudgetEndedError as error:
        error_console.print(str(error), style="yellow", highlight=False, markup=False)
        sys.exit(BUDGET_SPENT)
    except BudgetSpentError as error:
        error_console.print(
            f"{error}. Replies that were kept are not paid for again: the same command with a "
            "larger budget goes on.",
            style="yellow",
            highlight=False,
            markup=False,
        )
        sys.exit(BUDGET_SPENT)
    except InterruptedRunError as error:
        error_console.print(str(error), style="yellow", highlight=False, markup=False)
        sys.exit(130)
    except AstraError as error:
        error_console.print(f"error: {error}", style="red", highlight=False, markup=False)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        error_console.print("interrupted", style="red")
        sys.exit(130)
    except Exception:
        # Not by Python itself: a message may hold a credential, or what a model wrote.
        error_console.print(
            f"{traceback.format_exc()}This is a defect of astra-rl; please report it.",
            style="red",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    run()
