"""Output of commands: tables for people, JSON for programs, gates for CI."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from astra_rl.cli.console import console, error_console
from astra_rl.cli.exit_codes import ExitCode
from astra_rl.infra.jsonio import jsonable
from astra_rl.infra.redaction import redact

if TYPE_CHECKING:
    from astra_rl.evaluation.measures.summary import Summary
    from astra_rl.evaluation.show.gate import Condition, Evidence
    from astra_rl.evaluation.stats.paired import PairedComparison
    from astra_rl.evaluation.stats.rates import Rate

class Output:
    """The output of a command.

    Args:
        as_json: Print JSON to stdout, and everything for people to stderr.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = error_console if as_json else console

    def table(self, table: Table) -> None:
        """Print a table."""
        self.console.print(table)

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line; text that a model wrote must go through `escaped` first."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def path(self, name: str, path: Path) -> None:
        """Print where a result was written."""
        self.line(f"{name}: {path}")

    def data(self, value: Any) -> None:
        """Print `value` as JSON, with --json only."""
        if self.as_json:
            # ASCII only: no control character that a model wrote reaches the terminal.
            text = json.dumps(jsonable(value), indent=2, ensure_ascii=True, allow_nan=False)
            print(redact(text), file=sys.stdout)

    def gate(self, conditions: Sequence[Condition], *evidence: Evidence) -> None:
        """Exit with code 3 if a condition holds or cannot be decided."""
        verdicts = [condition(each) for condition in conditions for each in evidence]
        for verdict in verdicts:
            self.line(verdict.text, style="red" if verdict.fails else "green")
        if any(verdict.fails for verdict in verdicts):
            raise typer.Exit(ExitCode.GATE_FAILED)

    def summaries(self, summaries: Mapping[str, Summary]) -> None:
        """Print attack success rates and outcomes, one row per summary."""
        table = Table()
        for column in ("", "attack success rate", "95% interval", "outcomes"):
            table.add_column(column)
        for name, summary in summaries.items():
            outcomes = ", ".join(f"{n} {key.value}" for key, n in summary.outcomes.items() if n)
            if summary.never_made:
                outcomes += f" ({summary.never_made} not attempted)"
            table.add_row(escaped(name), *cell(summary.asr).split("\n", 1), outcomes)
        self.table(table)
        for name, summary in summaries.items():
            for each in summary.asr_at_k[1:]:
                self.line(f"{name}: {each.text}")
            if summary.asr.unscored:
                self.line(f"{name}: {summary.asr.bounds_text}")
            if summary.asr.trials:
                self.line(f"{name}: {summary.queries.text}")

    def pairs(self, pairs: PairedComparison, a: str, b: str) -> None:
        """Print a paired comparison."""
        table = Table(title="paired by prompt and trial")
        table.add_column("attack succeeded")
        table.add_column("pairs", justify="right")
        names = ("both", f"only {a}", f"only {b}", "neither")
        for name, count in zip(names, pairs.counts, strict=True):
            table.add_row(escaped(name), str(count))
        self.table(table)
        low, high = pairs.interval
        self.line(
            f"difference {pairs.difference:+.1%} (95% interval {low:+.1%} to {high:+.1%}), "
            f"exact p = {pairs.p_value:.3g}, {pairs.prompts} prompts"
            + (f", {pairs.unscored} pairs unscored" if pairs.unscored else "")
            + (f", {pairs.unpaired} unpaired" if pairs.unpaired else ""),
        )


def conditions_of(
    fail_on: Sequence[str] | None, quantities: Sequence[str] | None = None
) -> list[Condition]:
    """Parse the conditions of --fail-on; called before any work."""
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


def escaped(text: str) -> str:
    """Return text of a model or a file without terminal control characters and markup."""
    from astra_rl.evaluation.show.escaping import terminal_text

    return escape(terminal_text(text))
