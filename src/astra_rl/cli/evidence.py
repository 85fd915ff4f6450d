"""Commands on finished runs: score, replay, compare, export. Thin over `astra_rl.actions`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from astra_rl.cli.budget import (
    DryRun,
    MaxCost,
    MaxMinutes,
    MaxRequests,
    MaxTokens,
    budget_of,
    budget_settings,
    check_played,
    print_rows,
    print_spent,
)
from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.output import (
    GATE_FAILED,
    AsJson,
    FailOn,
    Overrides,
    Phase,
    Run,
    Shown,
    Trials,
    cell,
    conditions_of,
    shown,
)
from astra_rl.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from astra_rl.evaluation.measures.summary import Summary
    from astra_rl.evaluation.records.attempt import Attempt


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
        as_json: AsJson = False,
        max_requests: MaxRequests = None,
        max_tokens: MaxTokens = None,
        max_cost: MaxCost = None,
        max_minutes: MaxMinutes = None,
    ) -> None:
        """Judge the conversations of a run again with another moderator; no target is asked."""
        from astra_rl.actions.score import score_run
        from astra_rl.evaluation.stats.rates import describe_rate

        conditions = conditions_of(fail_on)
        quiet_libraries()
        out = Shown(console, as_json=as_json)
        budget = budget_of(max_requests, max_tokens, max_cost, max_minutes)
        found = score_run(
            run,
            moderator,
            threshold=threshold,
            phase=phase,
            budget=budget,
        )
        out.summaries({"as judged then": found.before, found.judge: found.now})
        if found.agreement.trials:
            out.line(f"the judges agree on {describe_rate(found.agreement)} of the turns")
        out.path("attempts", found.path)
        out.data(
            {
                "judge": found.judge,
                "threshold": threshold,
                "before": found.before.as_dict(),
                "now": found.now.as_dict(),
                "agreement": found.agreement.as_dict(),
            }
        )
        print_spent(found.spent, out.console)
        check_made(found.now, found.left_out, "conversations were judged")
        out.gate(conditions, found.now)

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
        as_json: AsJson = False,
        overrides: Overrides = None,
        max_requests: MaxRequests = None,
        max_tokens: MaxTokens = None,
        max_cost: MaxCost = None,
        max_minutes: MaxMinutes = None,
        dry_run: DryRun = False,
    ) -> None:
        """Send the saved attacks of a run again, to any target, and say what changed."""
        from astra_rl.actions.replay import estimate_replay, replay_run

        conditions = conditions_of(fail_on)
        quiet_libraries()
        out = Shown(console, as_json=as_json)
        budget = budget_settings(max_requests, max_tokens, max_cost, max_minutes)
        what: dict[str, Any] = {
            "target": target,
            "phase": phase,
            "only_failures": failures,
            "overrides": [*(overrides or ()), *budget],
        }
        if dry_run:
            print_rows(estimate_replay(run, **what), console)
            return
        found = replay_run(run, **what)
        if found.before is None or found.drift is None:
            out.summaries({"failures sent again": found.now})
            out.line(
                "the recorded rate of these attacks is 100% by selection, so it is not compared; "
                "to measure a change, replay without --failures"
            )
        else:
            out.summaries({"as recorded": found.before, "now": found.now})
            out.pairs(found.drift, "as recorded", "now")
        if found.read.successes:
            out.line(
                f"the target read something else than then in {found.read.successes} of "
                f"{found.read.trials} turns: its chat template, tokenizer or system message "
                "differs",
                style="yellow",
            )
        out.path("attempts", found.path)
        out.data(
            {
                "before": found.before and found.before.as_dict(),
                "now": found.now.as_dict(),
                "drift": found.drift and found.drift.as_dict(),
                "read_otherwise": found.read.as_dict(),
            }
        )
        print_spent(found.spent, out.console)
        check_made(found.now, found.left_out, "attacks were sent again, judged")
        out.gate(conditions, found.now)

    @app.command()
    def compare(
        run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.")],
        run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another.")],
        phase: Phase = "after",
        phase_b: Annotated[
            str | None, typer.Option(help="Part of RUN_B, where it is another one.")
        ] = None,
        output: Annotated[
            Path | None,
            typer.Option("--output", "-o", help="File. Default: in RUN_A, under comparisons."),
        ] = None,
        fail_on: FailOn = None,
        as_json: AsJson = False,
    ) -> None:
        """Compare two runs on the prompts that both played, pair by pair.

        What fails only in RUN_B is listed: the attacks of differential testing. --fail-on takes
        'difference', 'lower(difference)' and 'upper(difference)': rate of RUN_A minus RUN_B.
        """
        from astra_rl.actions.compare import compare_runs
        from astra_rl.evaluation.show.gate import OF_A_COMPARISON
        from astra_rl.infra.jsonio import write_json

        conditions = conditions_of(fail_on, OF_A_COMPARISON)
        out = Shown(console, as_json=as_json)
        found = compare_runs(run_a, run_b, phase=phase, phase_b=phase_b)
        a, b = found.names
        out.summaries({a: found.a.summary, b: found.b.summary})
        out.pairs(found.pairs, a, b)
        _show_attacks(out, f"what fails only in {b}", found.only_b)
        path = output or found.default_path
        write_json(found.as_dict(), path)
        out.path("comparison", path)
        out.data(found.as_dict())
        out.gate(conditions, found.pairs)

    @app.command()
    def transfer(
        runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One attacker each.")],
        target: Annotated[
            list[str],
            typer.Option("--target", help="Folder, hub id or YAML file. May be repeated."),
        ],
        trials: Trials = 1,
        fail_on: FailOn = None,
        as_json: AsJson = False,
        max_requests: MaxRequests = None,
        max_tokens: MaxTokens = None,
        max_cost: MaxCost = None,
        max_minutes: MaxMinutes = None,
    ) -> None:
        """Play every attacker against every target: which failures are shared.

        The matrix is kept as transfer.json in every run. --fail-on is checked in every cell. There
        is one budget for all of it.
        """
        from astra_rl.actions.transfer import transfer as play

        quiet_libraries()
        conditions = conditions_of(fail_on)
        out = Shown(console, as_json=as_json)
        budget = budget_settings(max_requests, max_tokens, max_cost, max_minutes)
        found = play(runs, target, trials=trials, overrides=budget)
        matrix = found.matrix
        table = Table(title="held-out conversations in which the target failed")
        table.add_column("attacker")
        for name in matrix.targets:
            table.add_column(shown(name), justify="right")
        for attacker in matrix.attackers:
            cells = [cell(matrix.rates.get((attacker, name))) for name in matrix.targets]
            table.add_row(shown(attacker), *cells)
        out.table(table)
        out.data(matrix.as_dict())
        print_spent(found.spent, out.console)
        summaries = matrix.summaries.values()
        check_played(
            sum(each.planned - each.never_made for each in summaries),
            sum(each.planned for each in summaries),
        )
        out.gate(conditions, *summaries)

    @app.command()
    def report(
        run: Run,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="File. Default: RUN/report.html.")
        ] = None,
    ) -> None:
        """Make the page of a run again, from what is in its folder and nothing else.

        After 'score', 'evaluate' or 'transfer' the page shows what they found too. A run that has
        not ended has a page as well.
        """
        from astra_rl.runs.folder import open_run_folder
        from astra_rl.runs.report import write_run_page

        Shown(console).path("report", write_run_page(open_run_folder(run), output))

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
            typer.Option(help="JSONL of attack and reply: what to prefer, for TRL's formats."),
        ] = None,
    ) -> None:
        """Write the conversations of a run in another format, or as data to train on."""
        from astra_rl.evaluation.show.exports import EXPORTS
        from astra_rl.evaluation.show.exports.preferences import SafeReplies
        from astra_rl.runs.folder import open_run_folder
        from astra_rl.runs.phases import Recorded

        if kind not in EXPORTS:
            raise ConfigurationError(
                f"--format {kind}: unknown.{did_you_mean(kind, EXPORTS)} "
                f"Known: {', '.join(EXPORTS)}."
            )
        if safe_replies is not None and kind not in ("preferences", "unpaired"):
            raise ConfigurationError("--safe-replies goes with --format preferences or unpaired.")
        options: dict[str, Any] = {}
        if safe_replies is not None:
            options["safe"] = SafeReplies.load(safe_replies)
        folder = open_run_folder(run)
        path = output or folder.path / EXPORTS[kind].filename
        with Recorded(folder, phase) as recorded:
            if EXPORTS[kind].counts_planned:
                options["planned"] = recorded.planned
            written = EXPORTS[kind].write(recorded.attempts(), path, **options)
        out = Shown(console)
        out.line(f"{written} written")
        out.path("file", path)

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
        as_json: AsJson = False,
        overrides: Overrides = None,
        max_requests: MaxRequests = None,
        max_tokens: MaxTokens = None,
        max_cost: MaxCost = None,
        max_minutes: MaxMinutes = None,
    ) -> None:
        """Send the attacks of a suite to a target; exit code 3 unless it withstands all."""
        from astra_rl.actions.regress import regress as send
        from astra_rl.evaluation.show.exports.regression import CaseResult

        quiet_libraries()
        out = Shown(console, as_json=as_json)
        results = send(
            suite,
            target,
            run=run,
            moderator=moderator,
            overrides=overrides or (),
            budget=budget_of(max_requests, max_tokens, max_cost, max_minutes),
        )
        table = Table(title=f"{len(results)} cases")
        for column in ("case", "status", "detail", "last attack"):
            table.add_column(column)
        for result in results:
            if result.status != "passed":
                attack = shown(result.case.attacks[-1].strip()[:100])
                table.add_row(result.case.id, result.status, shown(result.detail), attack)
        if table.row_count:
            out.table(table)
        passed = sum(result.status == "passed" for result in results)
        out.line(f"{passed} of {len(results)} passed")
        out.data(
            [
                {"case": each.case.id, "status": each.status, "detail": each.detail}
                for each in results
            ]
        )
        sent = sum(result.was_sent for result in results)
        check_played(sent, len(results), "cases were sent, judged")
        if not CaseResult.all_passed(results):
            raise typer.Exit(GATE_FAILED)


def check_made(found: Summary, left_out: int, done: str) -> None:
    """Leave with the exit code of a budget that is spent if it left something out."""
    made = found.planned - found.never_made
    check_played(made, made + left_out, done)


def _show_attacks(out: Shown, title: str, attempts: Sequence[Attempt], most: int = 10) -> None:
    if not attempts:
        return
    table = Table(title=shown(title))
    for column in ("score", "attack", "response"):
        table.add_column(column)
    for attempt in attempts[:most]:
        turn = attempt.failing_turn
        if turn is not None:
            said = (shown(text.strip()[:120]) for text in (turn.attack, turn.response))
            table.add_row(f"{attempt.score or 0:.2f}", *said)
    out.table(table)
