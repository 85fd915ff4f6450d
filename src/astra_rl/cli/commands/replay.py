"""``astra-rl replay``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from astra_rl.cli.console import console, quiet_libraries
from astra_rl.cli.costs import check_all_made, print_estimate, print_spent
from astra_rl.cli.options import DryRun, Phase, ResultOptions, Run, SettingOptions

if TYPE_CHECKING:
    from astra_rl.cli.output import Printer
    from astra_rl.evaluation.records.attempt import Attempt


def replay(
    run: Run,
    options: SettingOptions,
    result: ResultOptions,
    target: Annotated[
        str | None,
        typer.Option(help="Target: a folder, hub id or YAML file. Default: the target of the run."),
    ] = None,
    phase: Phase = "after",
    failures: Annotated[
        bool, typer.Option("--failures", help="Replay successful attacks only.")
    ] = False,
    conversation: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Replay this conversation only, and print it; the report shows its id.",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Replay the recorded attacks of a run against a target and report what changed."""
    from astra_rl.actions.replay import estimate_replay, replay_run
    from astra_rl.evaluation.judges.quality import JudgedSummary, describe_judge
    from astra_rl.evaluation.show.gate import OF_A_JUDGED_SUMMARY

    selected = failures or conversation is not None
    out = result.printer(None if selected else OF_A_JUDGED_SUMMARY)
    quiet_libraries()
    what: dict[str, Any] = {
        "target": target,
        "phase": phase,
        "only_failures": failures,
        "conversation": conversation,
        "overrides": options.overrides(),
    }
    if dry_run:
        expected = estimate_replay(run, **what)
        print_estimate(expected.rows, console, expected.ends)
        return
    found = replay_run(run, **what)
    if found.conversation is not None:
        _print_conversation(*found.conversation, out)
    elif found.before is None or found.drift is None:
        out.summaries({"failures replayed": found.now})
        out.line(
            "the recorded rate of these attacks is 100% by selection, so it is not compared; to "
            "measure a change, replay without --failures"
        )
    else:
        out.summaries({"as recorded": found.before, "now": found.now})
        out.pairs(found.drift, "as recorded", "now")
        for line in describe_judge(found.quality, found.now):
            out.line(f"judge: {line}")
    if found.read.successes:
        out.line(
            f"the target's input differs from the recorded one in {found.read.successes} of "
            f"{found.read.trials} turns: its chat template, tokenizer or system message differs",
            style="yellow",
        )
    out.path("attempts", found.path)
    out.data(
        {
            "before": found.before and found.before.as_dict(),
            "now": found.now.as_dict(),
            "judge_quality": found.quality and found.quality.as_dict(),
            "asr_corrected": found.quality and found.quality.correct(found.now).as_dict(),
            "drift": found.drift and found.drift.as_dict(),
            "read_otherwise": found.read.as_dict(),
            "conversation": found.conversation
            and [[turn.response for turn in each.turns] for each in found.conversation],
        }
    )
    print_spent(found.spent, out.console)
    check_all_made(found.now, found.left_out, "attacks were replayed, judged")
    out.gate(found.now if selected else JudgedSummary(found.now, found.quality))


def _print_conversation(then: Attempt, now: Attempt, out: Printer) -> None:
    """Print the turns of a conversation with the recorded and the new response and their scores."""
    from astra_rl.evaluation.show.escaping import terminal_text

    for number, old in enumerate(then.turns):
        out.line(f"attacker: {terminal_text(old.attack)}", style="cyan")
        sides = [("recorded", then, old)]
        if number < len(now.turns):
            sides.append(("now", now, now.turns[number]))
        for name, attempt, turn in sides:
            score = turn.score(attempt.judge)
            value = "no score" if score is None else f"score {score:.2f}"
            out.line(f"{name} ({value}): {terminal_text(turn.response)}")
    out.line(f"recorded: {then.outcome.value}; now: {now.outcome.value}")
