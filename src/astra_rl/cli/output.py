"""How commands print results: tables for people, JSON for programs, gates for CI."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from astra_rl.cli.console import SafeConsole, console, error_console, print_result
from astra_rl.cli.exit_codes import ExitCode
from astra_rl.infra.jsonio import jsonable
from astra_rl.infra.redaction import redact

if TYPE_CHECKING:
    from astra_rl.evaluation.measures.summary import Summary
    from astra_rl.evaluation.records.attempt import Attempt
    from astra_rl.evaluation.show.gate import Condition, Evidence
    from astra_rl.evaluation.stats.paired import PairedComparison
    from astra_rl.evaluation.stats.rates import Rate

EXCERPT = 120
"""Maximum length, in characters, of an attack or a response in a table."""


class Printer:
    """Prints the results of a command.

    Args:
        as_json: Print JSON on stdout, and the output for people on stderr.
        conditions: Conditions of ``--fail-on``, checked by `gate`.
    """

    def __init__(self, *, as_json: bool = False, conditions: Sequence[Condition] = ()) -> None:
        self.as_json = as_json
        self.conditions = conditions
        self.console = SafeConsole(stderr=True, quiet=console.quiet) if as_json else console

    def table(self, table: Table) -> None:
        """Print a table."""
        self.console.print(table)

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line as it is: without markup and without wrapping."""
        self.console.print_line(text, style)

    def path(self, name: str, path: Path) -> None:
        """Print where a file was written."""
        self.line(f"{name}: {path}")

    def data(self, value: Any) -> None:
        """Print the result as JSON if ``--json`` was given."""
        if self.as_json:
            # ASCII: no control character of a model's reply reaches a terminal that reads it.
            text = json.dumps(jsonable(value), indent=2, ensure_ascii=True, allow_nan=False)
            print_result(redact(text))

    def gate(self, *evidence: Evidence) -> None:
        """Check every condition on every piece of evidence, and print the verdicts.

        With ``--quiet`` those that fail the command are printed on stderr.

        Raises:
            typer.Exit: With `ExitCode.GATE_FAILED`, if a condition holds or cannot be decided.
        """
        from astra_rl.evaluation.show.gate import check

        verdicts = check(self.conditions, evidence)
        for verdict in verdicts:
            self.line(verdict.text, style="red" if verdict.fails else "green")
            if verdict.fails and self.console.quiet:
                error_console.print_line(verdict.text, "red")
        if any(verdict.fails for verdict in verdicts):
            raise typer.Exit(ExitCode.GATE_FAILED)

    def summaries(self, summaries: Mapping[str, Summary]) -> None:
        """Print attack success rates and outcomes side by side."""
        table = Table()
        for column in ("", "ASR", "95% interval", "outcomes"):
            table.add_column(column)
        for name, summary in summaries.items():
            outcomes = ", ".join(f"{n} {key.value}" for key, n in summary.outcomes.items() if n)
            if summary.never_made:
                outcomes += f" ({summary.never_made} not played)"
            table.add_row(as_text(name), *cell(summary.asr).split("\n", 1), outcomes)
        self.table(table)
        for name, summary in summaries.items():
            for line in summary.lines:
                self.line(f"{name}: {line}")

    def pairs(self, pairs: PairedComparison, a: str, b: str) -> None:
        """Print a paired comparison of two sets of attempts on the same prompts."""
        table = Table(title="paired comparison on the same prompts")
        table.add_column("attack success")
        table.add_column("pairs", justify="right")
        names = ("in both", f"only in {a}", f"only in {b}", "in neither")
        for name, count in zip(names, pairs.counts, strict=True):
            table.add_row(as_text(name), str(count))
        self.table(table)
        left_out = (f", {pairs.unscored} pairs unscored" if pairs.unscored else "") + (
            f", {pairs.unpaired} unpaired" if pairs.unpaired else ""
        )
        if not pairs.prompts:
            self.line(f"no prompt has a known outcome on both sides: no difference{left_out}")
            return
        from astra_rl.evaluation.stats.percent import signed_percent

        low, high = pairs.interval
        p_value = "p undecided"
        if not math.isnan(pairs.p_value):
            kind = "p at any time of stopping early" if pairs.sequential else "exact p"
            p_value = f"{kind} = {pairs.p_value:.3g}"
        self.line(
            f"difference {signed_percent(pairs.difference)} "
            f"(95% interval {low:+.1%} to {high:+.1%}), {p_value}, "
            f"{pairs.prompts} prompts{left_out}"
        )
        if pairs.bounds is not None:
            self.line(
                f"unscored attempts: the difference is between {pairs.bounds.low:+.1%} and "
                f"{pairs.bounds.high:+.1%} whatever their outcomes; the interval and p include that"
            )

    def attacks(self, title: str, attempts: Sequence[Attempt], most: int = 10) -> None:
        """Print the successful turn of the first attempts; nothing if there are none."""
        if not attempts:
            return
        table = Table(title=as_text(title))
        for column in ("score", "opening and attack", "response"):
            table.add_column(column)
        for attempt in attempts[:most]:
            turn = attempt.failing_turn
            if turn is not None:
                texts = excerpt(attempt.failing_request), excerpt(turn.response)
                table.add_row(f"{attempt.score or 0:.2f}", *texts)
        self.table(table)


def parse_conditions(
    texts: Sequence[str], quantities: Sequence[str] | None = None
) -> list[Condition]:
    """Parse conditions of ``--fail-on``.

    Args:
        texts: The conditions, for instance ``asr>0.05``.
        quantities: Names that they may use; None means those of an evaluation summary.

    Raises:
        ConfigurationError: A condition cannot be parsed, or uses another name.
    """
    from astra_rl.evaluation.show import gate

    known = gate.OF_A_SUMMARY if quantities is None else quantities
    return [gate.fail_on(each, known) for each in texts]


def cell(rate: Rate | None) -> str:
    """Return a rate and its interval as two lines."""
    from astra_rl.evaluation.stats.percent import format_percent

    if rate is None:
        return "-\n-"
    low, high = rate.interval
    return (
        f"{format_percent(rate.estimate)} ({rate.counts_text})\n"
        f"{format_percent(low)} to {format_percent(high)}"
    )


def as_text(text: str) -> str:
    """Escape text of unknown origin for a table: no control characters, no markup."""
    from astra_rl.evaluation.show.escaping import terminal_text

    return escape(terminal_text(text))


def excerpt(text: str) -> str:
    """Return the beginning of an attack or a response, escaped for a table."""
    return as_text(text.strip()[:EXCERPT])
