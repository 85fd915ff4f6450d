"""Commands on finished runs: judge, send, compare, export. Thin over `astra_rl.runs.evaluation`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from astra_rl.cli.spending import (
    MaxCost,
    MaxMinutes,
    MaxRequests,
    MaxTokens,
    budget_settings,
)
from astra_rl.cli.terminal import quiet_libraries
from astra_rl.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from astra_rl.evaluation.gate import Condition
    from astra_rl.evaluation.paired import PairedComparison
    from astra_rl.evaluation.statistics import Rate
    from astra_rl.evaluation.summary import Summary

GATE_FAILED = 3
"""Exit code of a condition of --fail-on that holds, and of a regression."""

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run made by train or demo.")]
Phase = Annotated[
    str, typer.Option(help="Part of the run: 'before', 'training', 'after' or 'again'.")
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


def register(app: typer.Typer, console: Console) -> None:
    """Add the commands to the command line."""

    @app.command()
    def score(
        run: Run,
        moderator: Annotated[
            str, typer.Option("--moderator", "-m", help="Name, or YAML file with type and options.")
        ],
        threshold: Annotated[
            float, typer.Option(help="Score from which on the target failed.")
        ] = 0.5,
        phase: Phase = "after",
        fail_on: FailOn = None,
    ) -> None:
        """Judge the conversations of a run again with another moderator; nothing is sent."""
        from astra_rl.runs.judging import score_run

        conditions = conditions_of(fail_on)
        quiet_libraries()
        found = score_run(run, moderator, threshold=threshold, phase=phase)
        _print_summaries(console, {"as judged then": found.before, found.judge: found.now})
        if not math.isnan(found.agreement):
            console.print(f"the judges agree on {found.agreement:.0%} of the turns")
        _say_path(console, "attempts", found.path)
        check_gate(console, conditions, found.now)

    @app.command()
    def replay(
        run: Run,
        target: Annotated[
            str | None,
            typer.Option(help="Folder, hub id or YAML file of a target. Default: the run's."),
        ] = None,
        phase: Phase = "after",
        failures: Annotated[
            bool, typer.Option("--failures", help="Send only what made the target fail.")
        ] = False,
        fail_on: FailOn = None,
        overrides: Overrides = None,
        max_requests: MaxRequests = None,
        max_tokens: MaxTokens = None,
        max_cost: MaxCost = None,
        max_minutes: MaxMinutes = None,
    ) -> None:
        """Send the saved attacks of a run again, to any target, and say what changed."""
        from astra_rl.runs.judging import replay_run

        conditions = conditions_of(fail_on)
        quiet_libraries()
        found = replay_run(
            run,
            target=target,
            phase=phase,
            only_failures=failures,
            overrides=[
                *(overrides or ()),
                *budget_settings(max_requests, max_tokens, max_cost, max_minutes),
            ],
        )
        _print_summaries(console, {"as recorded": found.before, "now": found.now})
        _print_pairs(console, found.drift, "as recorded", "now")
        _say_path(console, "attempts", found.path)
        check_gate(console, conditions, found.now)

    @app.command()
    def compare(
        run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.")],
        run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another.")],
        phase: Phase = "after",
    ) -> None:
        """Compare two runs on the prompts that both played, pair by pair."""
        from astra_rl.runs.judging import compare_runs

        _print_pairs(console, compare_runs(run_a, run_b, phase=phase), run_a.name, run_b.name)

    @app.command()
    def transfer(
        runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One attacker each.")],
        target: Annotated[
            list[str],
            typer.Option("--target", help="Folder, hub id or YAML file. May be repeated."),
        ],
    ) -> None:
        """Play every attacker against every target: which failures are shared."""
        from astra_rl.runs.evaluation import transfer as play

        quiet_libraries()
        matrix = play(runs, target)
        table = Table(title="held-out conversations in which the target failed")
        table.add_column("attacker")
        for name in matrix.targets:
            table.add_column(_shown(name), justify="right")
        for attacker in matrix.attackers:
            cells = [_cell(matrix.rates.get((attacker, name))) for name in matrix.targets]
            table.add_row(_shown(attacker), *cells)
        console.print(table)

    @app.command()
    def export(
        run: Run,
        kind: Annotated[
            str, typer.Option("--format", "-f", help="One of those 'astra-rl info formats' lists.")
        ],
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="File. Default: in the run folder.")
        ] = None,
        phase: Phase = "after",
        safe_replies: Annotated[
            Path | None,
            typer.Option(help="JSONL of attack and reply: what to prefer, for 'preferences'."),
        ] = None,
    ) -> None:
        """Write the conversations of a run in another format, or as data to train on."""
        from astra_rl.evaluation.exports import EXPORTS
        from astra_rl.evaluation.exports.preferences import SafeReplies
        from astra_rl.runs.folder import open_run_folder
        from astra_rl.runs.judging import open_attempts

        if kind not in EXPORTS:
            raise ConfigurationError(
                f"--format {kind}: unknown.{did_you_mean(kind, EXPORTS)} "
                f"Known: {', '.join(EXPORTS)}."
            )
        if safe_replies is not None and kind != "preferences":
            raise ConfigurationError("--safe-replies goes with --format preferences.")
        options = {} if safe_replies is None else {"safe": SafeReplies.load(safe_replies)}
        folder = open_run_folder(run)
        path = output or folder.path / EXPORTS[kind].filename
        with open_attempts(folder, phase) as log:
            written = EXPORTS[kind].write(log.attempts(phase=phase), path, **options)
        console.print(f"{written} written", highlight=False, markup=False)
        _say_path(console, "file", path)

    @app.command()
    def regress(
        suite: Annotated[
            Path, typer.Argument(metavar="SUITE", help="Written by export --format regression.")
        ],
        target: Annotated[str, typer.Option(help="Folder, hub id or YAML file of one.")],
        run: Annotated[
            Path | None, typer.Option(help="Run that says how target and judge are called.")
        ] = None,
        moderator: Annotated[
            str | None, typer.Option("--moderator", "-m", help="Judge. Default: the run's.")
        ] = None,
        overrides: Overrides = None,
    ) -> None:
        """Send the attacks of a suite to a target; exit code 3 unless it withstands all."""
        from astra_rl.evaluation.exports.regression import CaseResult
        from astra_rl.runs.judging import regress as send

        quiet_libraries()
        results = send(suite, target, run=run, moderator=moderator, overrides=overrides or ())
        table = Table(title=f"{len(results)} cases")
        for column in ("case", "status", "detail", "last attack"):
            table.add_column(column)
        for result in results:
            if result.status != "passed":
                attack = _shown(result.case.attacks[-1].strip()[:100])
                table.add_row(result.case.id, result.status, _shown(result.detail), attack)
        if table.row_count:
            console.print(table)
        passed = sum(result.status == "passed" for result in results)
        console.print(f"{passed} of {len(results)} passed", highlight=False)
        if not CaseResult.all_passed(results):
            raise typer.Exit(GATE_FAILED)


def conditions_of(fail_on: Sequence[str] | None) -> list[Condition]:
    """Parse the conditions of --fail-on, before anything is done."""
    from astra_rl.evaluation.gate import fail_on as parse

    return [parse(each) for each in fail_on or ()]


def check_gate(console: Console, conditions: Sequence[Condition], summary: Summary) -> None:
    """Leave with code 3 if a condition holds or cannot be decided."""
    verdicts = [condition(summary) for condition in conditions]
    for verdict in verdicts:
        color = "red" if verdict.fails else "green"
        console.print(verdict.text, style=color, highlight=False, markup=False)
    if any(verdict.fails for verdict in verdicts):
        raise typer.Exit(GATE_FAILED)


def _print_summaries(console: Console, summaries: Mapping[str, Summary]) -> None:
    table = Table()
    for column in ("", "failed", "95% interval", "outcomes"):
        table.add_column(column)
    for name, summary in summaries.items():
        outcomes = ", ".join(f"{n} {key.value}" for key, n in summary.outcomes.items() if n)
        table.add_row(_shown(name), *_cell(summary.asr).split("\n", 1), outcomes)
    console.print(table)


def _print_pairs(console: Console, pairs: PairedComparison, a: str, b: str) -> None:
    table = Table(title="the same prompts, in pairs")
    table.add_column("the target failed")
    table.add_column("pairs", justify="right")
    for name, count in zip(
        ("in both", f"only in {a}", f"only in {b}", "in neither"), pairs.counts, strict=True
    ):
        table.add_row(_shown(name), str(count))
    console.print(table)
    low, high = pairs.interval
    console.print(
        f"difference {pairs.difference:+.1%} (95% interval {low:+.1%} to {high:+.1%}), "
        f"exact p = {pairs.p_value:.3g}, {pairs.prompts} prompts"
        + (f", {pairs.unscored} pairs unscored" if pairs.unscored else "")
        + (f", {pairs.unpaired} without a partner" if pairs.unpaired else ""),
        highlight=False,
    )


def _cell(rate: Rate | None) -> str:
    from astra_rl.evaluation.statistics import format_percent

    if rate is None:
        return "-\n-"
    low, high = rate.interval
    return (
        f"{format_percent(rate.estimate)} ({rate.successes} of {rate.trials})\n"
        f"{format_percent(low)} to {format_percent(high)}"
    )


def _shown(text: str) -> str:
    from astra_rl.evaluation.escaping import terminal_text

    return escape(terminal_text(text))


def _say_path(console: Console, name: str, path: Path) -> None:
    console.print(f"{name}: {path}", highlight=False, soft_wrap=True, markup=False)
