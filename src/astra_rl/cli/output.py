"""How commands show what they found: tables for people, JSON for machines, gates for CI."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from astra_rl.cli.console import SafeConsole
from astra_rl.infra.jsonio import jsonable
from astra_rl.infra.redaction import redact

if TYPE_CHECKING:
    from astra_rl.evaluation.measures.summary import Summary
    from astra_rl.evaluation.show.gate import Condition, Evidence
    from astra_rl.evaluation.stats.paired import PairedComparison
    from astra_rl.evaluation.stats.rates import Rate

GATE_FAILED = 3
"""Exit code of a condition of --fail-on that holds, and of a regression."""

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run made by train or demo.")]
Phase = Annotated[
    str,
    typer.Option(
        help="Part of the run: 'before', 'training', 'after', or a later one such as 'again'."
    ),
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="CONDITION",
        help=(
            "Exit with code 3 if this holds, for instance 'asr>0.05', 'upper(asr)>10%', "
            "'unscored>0.2'. May be repeated."
        ),
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the run's configuration."),
]
Trials = Annotated[int, typer.Option(min=1, help="How often each prompt is tried.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, and all else on stderr.")
]


class Shown:
    """Where a command shows what it found.

    Args:
        console: For people.
        as_json: Show people everything on stderr, and print JSON on stdout.
    """

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = SafeConsole(stderr=True) if as_json else console

    def table(self, table: Table) -> None:
        """Show a table."""
        self.console.print(table)

    def line(self, text: str, style: str | None = None) -> None:
        """Show a line of ours; what a model wrote goes through `shown` first."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def path(self, name: str, path: Path) -> None:
        """Say where something was written."""
        self.line(f"{name}: {path}")

    def data(self, value: Any) -> None:
        """Print the JSON, if it was asked for."""
        if self.as_json:
            # ASCII: a terminal that reads it meets no control character of a model's.
            text = json.dumps(jsonable(value), indent=2, ensure_ascii=True, allow_nan=False)
            print(redact(text), file=sys.stdout)

    def gate(self, conditions: Sequence[Condition], *evidence: Evidence) -> None:
        """Leave with code 3 if a condition holds or cannot be decided."""
        verdicts = [condition(each) for condition in conditions for each in evidence]
        for verdict in verdicts:
            self.line(verdict.text, style="red" if verdict.fails else "green")
        if any(verdict.fails for verdict in verdicts):
            raise typer.Exit(GATE_FAILED)

    def summaries(self, summaries: Mapping[str, Summary]) -> None:
        """Show rates and outcomes side by side."""
        table = Table()
        for column in ("", "failed", "95% interval", "outcomes"):
            table.add_column(column)
        for name, summary in summaries.items():
            outcomes = ", ".join(f"{n} {key.value}" for key, n in summary.outcomes.items() if n)
            if summary.never_made:
                outcomes += f" ({summary.never_made} never made)"
            table.add_row(shown(name), *cell(summary.asr).split("\n", 1), outcomes)
        self.table(table)
        for name, summary in summaries.items():
            for each in summary.asr_at_k[1:]:
                self.line(f"{name}: {each.text}")
            if summary.asr.unscored:
                self.line(f"{name}: {summary.asr.bounds_text}")
            if summary.asr.trials:
                self.line(f"{name}: {summary.queries.text}")

    def pairs(self, pairs: PairedComparison, a: str, b: str) -> None:
        """Show a paired comparison."""
        table = Table(title="the same prompts, in pairs")
        table.add_column("the target failed")
        table.add_column("pairs", justify="right")
        names = ("in both", f"only in {a}", f"only in {b}", "in neither")
        for name, count in zip(names, pairs.counts, strict=True):
            table.add_row(shown(name), str(count))
        self.table(table)
        low, high = pairs.interval
        self.line(
            f"difference {pairs.difference:+.1%} (95% interval {low:+.1%} to {high:+.1%}), "
            f"exact p = {pairs.p_value:.3g}, {pairs.prompts} prompts"
            + (f", {pairs.unscored} pairs unscored" if pairs.unscored else "")
            + (f", {pairs.unpaired} without a partner" if pairs.unpaired else ""),
        )


def conditions_of(
    fail_on: Sequence[str] | None, quantities: Sequence[str] | None = None
) -> list[Condition]:
    """Parse the conditions of --fail-on, before anything is done."""
    from astra_rl.evaluation.show import gate

    known = gate.OF_A_SUMMARY if quantities is None else quantities
    return [gate.fail_on(each, known) for each in fail_on or ()]


def cell(rate: Rate | None) -> str:
    """Return a rate and its interval as two lines."""
    from astra_rl.evaluation.stats.percent import format_percent

    if rate is None:
        return "-\n-"
    low, high = rate.interval
    return (
        f"{format_percent(rate.estimate)} ({rate.successes} of {rate.trials})\n"
        f"{format_percent(low)} to {format_percent(high)}"
    )


def shown(text: str) -> str:
    """Return what a model or a file said, so that a terminal shows it and nothing else."""
    from astra_rl.evaluation.show.escaping import terminal_text

    return escape(terminal_text(text))
