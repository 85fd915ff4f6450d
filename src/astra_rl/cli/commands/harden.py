"""``astra-rl harden``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.costs import print_estimate
from astra_rl.cli.options import DryRun, ResultOptions, SettingOptions
from astra_rl.cli.output import Printer, as_text, cell

if TYPE_CHECKING:
    from astra_rl.actions.harden import Hardened
    from astra_rl.actions.harden_estimate import HardeningEstimate
    from astra_rl.evaluation.measures.hardening import Hardening
    from astra_rl.evaluation.stats.paired import PairedComparison
    from astra_rl.evaluation.stats.rates import Rate


def harden(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml|RUN",
            help="Configuration, complete run whose attacker is the first, or hardening to resume.",
        ),
    ],
    options: SettingOptions,
    result: ResultOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the hardening. Default: named after the source."
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds of fine-tuning; sets harden.rounds."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Attack a local target, fine-tune it on the failures, and attack it again.

    Each round trains an adapter of the target on the failures found so far, guarded by benign
    requests, and a fresh attacker against the result. Prints the success rate of every attacker
    against every target and the refusals of benign requests, and writes harden.json and
    report.html. --fail-on is checked for every attacker against the last target. Limits of the
    budget apply to all phases together. Needs the extra 'harden'.
    """
    from astra_rl.actions.harden import harden as harden_target
    from astra_rl.actions.harden_estimate import estimate_hardening
    from astra_rl.cli.display import ConsoleDisplay

    out = result.printer()
    quiet_libraries()
    overrides = [*options.overrides(), *([] if rounds is None else [f"harden.rounds={rounds}"])]
    if dry_run:
        _print_estimate(estimate_hardening(source, overrides=overrides), out)
        return
    done = harden_target(
        source,
        output,
        overrides=overrides,
        display=ConsoleDisplay(out.console),
        command=shlex.join(["astra-rl", *sys.argv[1:]]),
    )
    print_hardened(done, out)
    last = done.result.targets[-1]
    out.gate(*(done.result.matrix.summaries[attacker, last] for attacker in done.result.attackers))


def _print_estimate(found: HardeningEstimate, out: Printer) -> None:
    """Print what each phase plays, trains and calls at most, then the calls of each endpoint."""
    from astra_rl.config.estimate import total_of

    table = Table(title="phases of the hardening, at most")
    for column in ("phase", "episodes", "steps", "requests", "tokens", "cost"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in found.phases:
        calls = total_of(phase.calls)
        cost = "-" if calls.cost is None else f"{calls.cost:.4g}"
        counts = (phase.episodes, phase.steps, calls.requests, calls.input + calls.output)
        table.add_row(phase.name, *(f"{count:,}" if count else "-" for count in counts), cost)
    out.table(table)
    print_estimate(found.calls, out.console, found.describe_budget())


def print_hardened(done: Hardened, out: Printer) -> None:
    """Print the tables of a hardening and where everything is."""
    found = done.result
    attacks = Table(title="attack success rate on held-out prompts")
    refusals = Table(title="refusals of benign requests")
    attacks.add_column("attacker")
    refusals.add_column("")
    for target in found.targets:
        attacks.add_column(as_text(target), justify="right")
        refusals.add_column(as_text(target), justify="right")
    for attacker in found.attackers:
        pairs = [(attacker, target) for target in found.targets]
        attacks.add_row(
            as_text(attacker),
            *(_cell(found.matrix.rates[pair], found.attack_changes.get(pair)) for pair in pairs),
        )
    refusals.add_row(
        "refused",
        *(
            _cell(each.asr, found.refusal_changes.get(name))
            for name, each in found.refusals.items()
        ),
    )
    out.table(attacks)
    _print_game(found, out)
    out.table(refusals)
    if done.ended_early:
        out.line(f"fewer rounds than configured: {done.ended_early}", style="yellow")
    for name, model in done.targets.items():
        out.line(f"{name}: {model}")
    out.path("report", done.path / "report.html")
    out.data(done.as_dict())


def _print_game(found: Hardening, out: Printer) -> None:
    """Print how far the measured attackers and targets are from an equilibrium, and that."""
    from astra_rl.evaluation.stats.percent import between

    low, high = found.exploitability_interval
    out.line(
        f"exploitability of the uniform mixtures: {found.exploitability:.3f} "
        f"(95% interval {low:.3f} to {high:.3f}; 0 at an equilibrium, at most 1; the largest of "
        "measured rates is too high on average)"
    )
    game, interval = found.equilibrium, found.equilibrium_interval
    if game is None or interval is None:
        out.line("equilibrium: none, because a success rate is unknown")
        return
    drawn = [
        f"{name} {weight:.0%}"
        for names, weights in (
            (found.attackers, game.attackers),
            (found.targets, game.targets),
        )
        for name, weight in zip(names, weights, strict=True)
        if weight
    ]
    out.line(
        f"equilibrium: attacks succeed at {game.value:.1%} (95% interval {between(interval)}), "
        f"with {', '.join(drawn)}"
    )


def _cell(rate: Rate, change: PairedComparison | None) -> str:
    from astra_rl.evaluation.stats.percent import signed_percent

    if change is None or not change.prompts:
        return cell(rate)
    low, high = change.interval
    return f"{cell(rate)}\nchange {signed_percent(change.difference)} ({low:+.1%} to {high:+.1%})"
