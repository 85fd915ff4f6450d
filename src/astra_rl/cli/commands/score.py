"""``astra-rl score``: re-score recorded conversations."""

from __future__ import annotations

from typing import Annotated

import typer

from astra_rl.cli.budget import check_all_made, print_spent
from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.options import AsJson, BudgetOptions, FailOn, Phase, Run
from astra_rl.cli.output import Output, conditions_of


def score(
    budget: BudgetOptions,
    run: Run,
    moderator: Annotated[
        str,
        typer.Option("--moderator", "-m", help="Name, or YAML file with 'type' and 'options'."),
    ],
    threshold: Annotated[
        float, typer.Option(help="A turn with at least this score is a success of the attack.")
    ] = 0.5,
    phase: Phase = "after",
    fail_on: FailOn = None,
    as_json: AsJson = False,
) -> None:
    """Re-score a run with another moderator; makes no target calls."""
    from astra_rl.actions.score import score_run
    from astra_rl.evaluation.stats.rates import describe_rate

    conditions = conditions_of(fail_on)
    quiet_libraries()
    out = Output(as_json=as_json)
    found = score_run(run, moderator, threshold=threshold, phase=phase, budget=budget.budget)
    out.summaries({"as recorded": found.before, found.judge: found.now})
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
    check_all_made(found.now, found.left_out, "conversations were judged")
    out.gate(conditions, found.now)
