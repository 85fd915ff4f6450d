"""What a command would spend on calls, and what it spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from astra_rl.errors import BudgetEndedError

if TYPE_CHECKING:
    from astra_rl.config.estimate import EstimateRow
    from astra_rl.config.schema import RunConfig
    from astra_rl.evaluation.measures.summary import Summary


def print_estimate(config: RunConfig, console: Console) -> None:
    """Check the configuration of a run and print the maximum number of its endpoint calls."""
    from astra_rl.config.estimate import estimate
    from astra_rl.config.resolve import check_training, resolve

    plan = resolve(config)
    check_training(plan)
    print_rows(estimate(plan), console)


def print_rows(rows: Sequence[EstimateRow], console: Console) -> None:
    """Print the maximum number of endpoint calls."""
    table = Table(title="maximum endpoint calls, without retries")
    for column in ("endpoint", "requests", "input tokens", "output tokens", "cost"):
        table.add_column(column, justify="left" if column == "endpoint" else "right")
    for row in rows:
        cost = "no prices" if row.cost is None else f"{row.cost:.4g}"
        table.add_row(row.name, f"{row.requests}", f"{row.input}", f"{row.output}", cost)
    if rows:
        console.print(table)
    else:
        console.print("no endpoint calls: every model runs in this process")
    console.print("dry run: no call was made and no model was loaded")


def print_spent(spent: Mapping[str, Any], console: Console) -> None:
    """Print what endpoint calls took, if there were any."""
    from astra_rl.targets.ledger import describe_spent

    text = describe_spent(spent)
    if text:
        console.print(f"spent on endpoint calls: {text}", highlight=False, markup=False)


def check_complete(done: int, planned: int, what: str = "conversations were played") -> None:
    """Raise if a budget ended a command before everything was done.

    Raises:
        BudgetEndedError: `done` is below `planned`.
    """
    if done < planned:
        raise BudgetEndedError(
            f"budget exhausted: {done} of {planned} {what}; the results cover these only. Replies "
            "are cached: run the same command again, with a larger budget, to continue without "
            "paying for them twice."
        )


def check_all_made(summary: Summary, left_out: int, what: str) -> None:
    """Raise if a budget left out some attempts; see `check_complete`."""
    made = summary.planned - summary.never_made
    check_complete(made, made + left_out, what)
