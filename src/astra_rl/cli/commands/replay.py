"""``astra-rl replay``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from astra_rl.cli.console import console, quiet_libraries
from astra_rl.cli.costs import check_all_made, print_estimate, print_spent
from astra_rl.cli.options import DryRun, Phase, ResultOptions, Run, SettingOptions


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
    dry_run: DryRun = False,
) -> None:
    """Replay the recorded attacks of a run against a target and report what changed."""
    from astra_rl.actions.replay import estimate_replay, replay_run

    out = result.printer()
    quiet_libraries()
    what: dict[str, Any] = {
        "target": target,
        "phase": phase,
        "only_failures": failures,
        "overrides": options.overrides(),
    }
    if dry_run:
        print_estimate(estimate_replay(run, **what), console)
        return
    found = replay_run(run, **what)
    if found.before is None or found.drift is None:
        out.summaries({"failures replayed": found.now})
        out.line(
            "the recorded rate of these attacks is 100% by selection, so it is not compared; to "
            "measure a change, replay without --failures"
        )
    else:
        out.summaries({"as recorded": found.before, "now": found.now})
        out.pairs(found.drift, "as recorded", "now")
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
            "drift": found.drift and found.drift.as_dict(),
            "read_otherwise": found.read.as_dict(),
        }
    )
    print_spent(found.spent, out.console)
    check_all_made(found.now, found.left_out, "attacks were replayed, judged")
    out.gate(found.now)
