"""``astra-rl score``."""

from __future__ import annotations

from typing import Annotated

import typer

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.costs import check_all_made, print_spent
from astra_rl.cli.options import BudgetOptions, Moderator, Phase, ResultOptions, Run


def score(
    run: Run,
    moderator: Moderator,
    budget: BudgetOptions,
    result: ResultOptions,
    threshold: Annotated[float, typer.Option(help="Minimum score of a successful attack.")] = 0.5,
    phase: Phase = "after",
) -> None:
    """Re-score a run with another moderator; makes no target calls."""
    from astra_rl.actions.score import score_run
    from astra_rl.evaluation.judges.quality import JudgedSummary, describe_judge
    from astra_rl.evaluation.show.gate import OF_A_JUDGED_SUMMARY
    from astra_rl.evaluation.stats.rates import describe_rate

    out = result.printer(OF_A_JUDGED_SUMMARY)
    quiet_libraries()
    found = score_run(run, moderator, threshold=threshold, phase=phase, budget=budget.budget())
    out.summaries({"as recorded": found.before, found.judge: found.now})
    if found.agreement.trials:
        out.line(f"both judges agree on {describe_rate(found.agreement)} of the turns")
    for line in describe_judge(found.quality, found.now):
        out.line(f"judge {found.judge}: {line}")
    out.path("attempts", found.path)
    out.data(
        {
            "judge": found.judge,
            "threshold": threshold,
            "before": found.before.as_dict(),
            "now": found.now.as_dict(),
            "agreement": found.agreement.as_dict(),
            "judge_quality": found.quality and found.quality.as_dict(),
            "asr_corrected": found.quality and found.quality.correct(found.now).as_dict(),
        }
    )
    print_spent(found.spent, out.console)
    check_all_made(found.now, found.left_out, "conversations were judged")
    out.gate(JudgedSummary(found.now, found.quality))
