"""``astra-rl harden``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.options import ResultOptions, SettingOptions
from astra_rl.cli.output import Printer, as_text, cell

if TYPE_CHECKING:
    from astra_rl.actions.harden import Hardened
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
) -> None:
    """Attack a local target, fine-tune it on the failures, and attack it again.

    Each round trains an adapter of the target on the failures found so far, guarded by benign
    requests, and a fresh attacker against the result. Prints the success rate of every attacker
    against every target and the refusals of benign requests, and writes harden.json and
    report.html. --fail-on is checked for every attacker against the last target. Limits of the
    budget apply to each phase. Needs the extra 'harden'.
    """
    from astra_rl.actions.harden import harden as harden_target
    from astra_rl.cli.display import ConsoleDisplay

    out = result.printer()
    quiet_libraries()
    overrides = [*options.overrides(), *([] if rounds is None else [f"harden.rounds={rounds}"])]
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
    out.table(refusals)
    if done.ended_early:
        out.line(f"fewer rounds than configured: {done.ended_early}", style="yellow")
    for name, model in done.targets.items():
        out.line(f"{name}: {model}")
    out.path("report", done.path / "report.html")
    out.data(done.as_dict())


def _cell(rate: Rate, change: PairedComparison | None) -> str:
    if change is None or not change.prompts:
        return cell(rate)
    low, high = change.interval
    return f"{cell(rate)}\nchange {change.difference:+.0%} ({low:+.0%} to {high:+.0%})"
