"""The run of ``test``, and of ``resume`` for one, and what they print."""

from __future__ import annotations

import shlex
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from astra_rl.cli.console import console, quiet_libraries
from astra_rl.cli.costs import print_estimate, print_spent
from astra_rl.cli.output import Printer, as_text
from astra_rl.cli.training_output import print_failures, print_judge

if TYPE_CHECKING:
    from astra_rl.config.plan import Plan
    from astra_rl.methods.ast_evaluator import EvaluationResult


def print_test_estimate(plan: Plan) -> None:
    """Print an upper bound of the calls of a test, and where its budget ends."""
    from astra_rl.actions.target_test_estimate import estimate_test
    from astra_rl.config.estimate import describe_budget_of_evaluation

    rows, conversations = estimate_test(plan), plan.planned_conversations
    console.print(f"{conversations} conversations", highlight=False)
    print_estimate(rows, console, describe_budget_of_evaluation(plan.budget, rows, conversations))


def test_and_print(
    plan: Plan, output: Path | None, out: Printer, *, name: str = "test", force: bool = False
) -> None:
    """Run or continue a test and print its result.

    Args:
        plan: The plan, without an attacker or with one that is prompted.
        output: Run folder; None creates a new one under ``runs``.
        out: Prints the result and checks the conditions of ``--fail-on``.
        name: Name of a new run folder.
        force: Continue even if the configuration or the prompts changed.

    Raises:
        AstraError: A file or model is wrong, or the test was interrupted, by a budget too.
    """
    from astra_rl.actions.target_test import run_test
    from astra_rl.evaluation.judges.quality import JudgedSummary
    from astra_rl.runs.resume import starting_in

    with starting_in(output, name) as folder:
        out.path("run folder", folder.path)
        quiet_libraries()
        command = shlex.join(["astra-rl", *sys.argv[1:]])
        found = run_test(plan, folder, command=command, force=force)
    summary = found.evaluation.summary
    if plan.attacker is not None:
        environment = plan.environment.name
        out.line(f"attacker: {plan.attacker.name} (prompted), environment {environment}")
    _print_rates(found.evaluation, plan.record.target, out)
    print_judge(found.evaluation, out)
    print_failures(folder, out)
    out.path("report", folder.report)
    print_spent(found.evaluation.metrics["spent"], out.console)
    out.data({"run": str(folder.path), **summary.as_dict()})
    if found.ended is not None:
        raise found.ended
    out.gate(JudgedSummary.of(summary, found.evaluation.metrics))


def _print_rates(result: EvaluationResult, name: str, out: Printer) -> None:
    """Print how often the target failed, on all prompts and by category."""
    from astra_rl.evaluation.measures.summary import summarise
    from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES
    from astra_rl.evaluation.stats.percent import between, format_percent

    rows = defaultdict(list)
    for attempt in result.attempts:
        rows[attempt.category].append(attempt.row)
    rates = {name: result.summary.asr}
    if len(rows) > 1:
        rates |= {kind or "(none)": summarise(rows[kind]).asr for kind in sorted(rows)}
    table = Table(title="how often the target failed")
    for column in ("prompts", "failed", "rate", "95% interval", "not known"):
        table.add_column(column, justify="left" if column == "prompts" else "right")
    for prompts, rate in rates.items():
        table.add_row(
            as_text(prompts),
            rate.counts_text,
            format_percent(rate.estimate),
            between(rate.interval),
            str(rate.unscored),
        )
    out.table(table)
    if len(rows) > 1:
        out.line(
            "each interval holds by itself: of twenty categories, one misses its rate on average"
        )
    for what, rate in result.summary.of_agents:
        out.line(f"{what}: {rate.text}")
    if result.summary.never_made:
        out.line(
            f"the budget was enough for {len(result.attempts)} of {result.summary.planned} "
            "conversations, chosen at random"
        )
    if result.summary.asr.unscored:
        out.line(result.summary.asr.bounds_text)
        reasons = Counter(
            turn["unscored"]
            for each in result.metrics["conversations"]
            if each["outcome"] not in KNOWN_OUTCOMES
            for turn in each["turns"]
            if "unscored" in turn
        )
        if reasons:
            why = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common(5))
            out.line(f"reasons: {why}")
