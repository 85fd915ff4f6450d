"""How commands print estimated and actual costs, and report an exhausted budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from astra_rl.cli.console import SafeConsole
from astra_rl.errors import BudgetEndedError

if TYPE_CHECKING:
    from astra_rl.config.estimate import EstimateRow
    from astra_rl.config.plan import Plan
    from astra_rl.evaluation.measures.summary import Summary


def print_plan(plan: Plan, console: SafeConsole) -> None:
    """Print who is played, judged and trained, by the names in the configuration."""
    record, openings = plan.record, plan.openings
    attacker = record.attacker or "none: the prompts are sent as they are"
    how = f", trained by {plan.algorithm.name}" if record.is_trained else ", prompted"
    lines = {
        "target": record.target,
        "attacker": attacker + (how if record.attacker else ""),
        "moderator": plan.moderator.name or "an object of Python",
        "judge": "the moderator" if plan.judge is None else plan.judge.name,
        "prompts": f"{len(openings.train)} of training, {len(openings.test)} held out",
        "environment": plan.environment.name,
    }
    for name, text in lines.items():
        console.print_line(f"{name:12} {text}")


def print_run_estimate(plan: Plan, console: SafeConsole) -> None:
    """Check the plan of a training; print its size and an upper bound of endpoint calls.

    Raises:
        ConfigurationError: A setting is wrong.
    """
    from astra_rl.config.estimate import describe_budget_of_run, estimate, training_size
    from astra_rl.config.resolve import check_training

    check_training(plan)
    size = training_size(plan)
    console.print_line(
        f"training, at most: {size.episodes:,} episodes, {size.attempts:,} attempts, "
        f"{size.replies:,} calls of the target, {size.updates:,} updates"
    )
    print_estimate(estimate(plan), console, describe_budget_of_run(plan))


def print_estimate(
    rows: Sequence[EstimateRow], console: SafeConsole, budget: Sequence[str] = ()
) -> None:
    """Print the result of a dry run: an upper bound of endpoint calls, tokens and cost.

    Args:
        rows: One per endpoint.
        console: Where it is printed.
        budget: Sentences that say where the budget ends.
    """
    from astra_rl.config.estimate import total_of

    table = Table(title="endpoint calls: upper bound, without retries")
    for column in ("endpoint", "requests", "input tokens", "output tokens", "cost"):
        table.add_column(column, justify="left" if column == "endpoint" else "right")
    total = [total_of(rows)] if len(rows) > 1 else []
    for row in [*rows, *total]:
        cost = "no prices" if row.cost is None else f"{row.cost:.4g}"
        table.add_row(row.name, f"{row.requests}", f"{row.input}", f"{row.output}", cost)
    if rows:
        console.print(table)
    else:
        console.print("no endpoint calls: every model is loaded into this process")
    for sentence in budget if rows else ():
        console.print_line(sentence)
    console.print("dry run: no call was made and no model was loaded")
    console.check_written()


def print_spent(spent: Mapping[str, Any], console: SafeConsole) -> None:
    """Print what endpoint calls used, if there were any."""
    from astra_rl.targets.accounts import describe_spent

    text = describe_spent(spent)
    if text:
        console.print_line(f"endpoint calls: {text}")


def check_all_done(done: int, planned: int, what: str = "conversations were played") -> None:
    """Raise the error of an exhausted budget unless all planned work was done.

    Args:
        done: Number of items that were done.
        planned: Number of items that were to be done.
        what: The items and the verb, for instance ``"conversations were played"``.

    Raises:
        BudgetEndedError: Fewer were done than planned.
    """
    if done < planned:
        raise BudgetEndedError(
            f"the budget is exhausted: {done} of {planned} {what} and summarized. Recorded replies "
            "are not paid for again: run the same command, with the same or a larger budget, to "
            "continue."
        )


def check_all_made(summary: Summary, left_out: int, what: str) -> None:
    """Raise the error of an exhausted budget if it left recorded attempts out.

    Raises:
        BudgetEndedError: It left some out.
    """
    made = summary.planned - summary.never_made
    check_all_done(made, made + left_out, what)
