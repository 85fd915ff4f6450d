"""``astra-rl replay``: send recorded attacks again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from astra_rl.cli.budget import check_all_made, print_rows, print_spent
from astra_rl.cli.console import console, quiet_libraries
from astra_rl.cli.options import (
    AsJson,
    BudgetOptions,
    DryRun,
    FailOn,
    Overrides,
    Phase,
    Run,
    overrides_of,
)
from astra_rl.cli.output import Output, conditions_of


def replay(
    budget: BudgetOptions,
    run: Run,
    target: Annotated[
        str | None,
        typer.Option(help="Target: folder, hub id or YAML file. Default: the run's."),
    ] = None,
    phase: Phase = "after",
    failures: Annotated[
        bool, typer.Option("--failures", help="Replay only the attacks that succeeded.")
    ] = False,
    fail_on: FailOn = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Send the recorded attacks of a run to a target again and report what changed."""
    from astra_rl.actions.replay import estimate_replay, replay_run

    conditions = conditions_of(fail_on)
    quiet_libraries()
    out = Output(as_json=as_json)
    what: dict[str, Any] = {
        "target": target,
        "phase": phase,
        "only_failures": failures,
        "overrides": overrides_of(overrides, budget),
    }
    if dry_run:
        print_rows(estimate_replay(run, **what), console)
        return
    found = replay_run(run, **what)
    out.summaries({"as recorded": found.before, "now": found.now})
    out.pairs(found.drift, "as recorded", "now")
    if found.read.successes:
        out.line(
            f"the target's input differs from the recorded one in {found.read.successes} of "
            f"{found.read.trials} turns: another chat template, tokenizer or system message",
            style="yellow",
        )
    out.path("attempts", found.path)
    out.data(
        {
            "before": found.before.as_dict(),
            "now": found.now.as_dict(),
            "drift": found.drift.as_dict(),
            "read_otherwise": found.read.as_dict(),
        }
    )
    print_spent(found.spent, out.console)
    check_all_made(found.now, found.left_out, "attacks were replayed and judged")
    out.gate(conditions, found.now)
