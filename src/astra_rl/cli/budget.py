"""Options that say what a command may spend, and what it would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from astra_rl.errors import BudgetEndedError
from astra_rl.targets.budget import Budget

if TYPE_CHECKING:
    from astra_rl.config.estimate import EstimateRow
    from astra_rl.config.schema import RunConfig

MaxRequests = Annotated[
    int | None,
    typer.Option("--max-requests", min=1, help="Most requests to endpoints, tries again included."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, help="Most tokens that endpoints read and write."),
]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost", help="Most that calls may cost, by the given prices.")
]
MaxMinutes = Annotated[
    float | None, typer.Option("--max-minutes", help="Most minutes, of all sessions together.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what it would ask and cost; send and load nothing.")
]


def budget_settings(
    max_requests: int | None,
    max_tokens: int | None,
    max_cost: float | None,
    max_minutes: float | None,
) -> list[str]:
    """Return the options that were given as changes to a configuration."""
    given = {
        "max_requests": max_requests,
        "max_tokens": max_tokens,
        "max_cost": max_cost,
        "max_minutes": max_minutes,
    }
    return [f"budget.{name}={value}" for name, value in given.items() if value is not None]


def budget_of(
    max_requests: int | None,
    max_tokens: int | None,
    max_cost: float | None,
    max_minutes: float | None,
) -> Budget | None:
    """Return the options that were given as a budget; None if none was.

    Raises:
        ConfigurationError: One is out of range.
    """
    given = Budget(max_requests, max_tokens, max_cost, max_minutes)
    return None if given == Budget() else given


def print_estimate(config: RunConfig, console: Console) -> None:
    """Check the configuration of a run and print what it would ask for at most."""
    from astra_rl.config.estimate import estimate
    from astra_rl.config.resolve import check_training, resolve

    plan = resolve(config)
    check_training(plan)
    print_rows(estimate(plan), console)


def print_rows(found: Sequence[EstimateRow], console: Console) -> None:
    """Print what would be asked for at most."""
    table = Table(title="at most, without tries again")
    for column in ("asked", "requests", "tokens read", "tokens written", "cost"):
        table.add_column(column, justify="left" if column == "asked" else "right")
    for row in found:
        cost = "no prices" if row.cost is None else f"{row.cost:.4g}"
        table.add_row(row.name, f"{row.requests}", f"{row.input}", f"{row.output}", cost)
    if found:
        console.print(table)
    else:
        console.print("nothing is asked: every model is loaded into this process")
    console.print("dry run: nothing was sent and no model was loaded")


def print_spent(spent: Mapping[str, Any], console: Console) -> None:
    """Print what calls cost, if there were any."""
    from astra_rl.targets.ledger import describe_spent

    told = describe_spent(spent)
    if told:
        console.print(f"spent on calls: {told}", highlight=False, markup=False)


def check_played(played: int, planned: int, done: str = "conversations were played") -> None:
    """Leave with the exit code of a budget that is spent if not all was done that was to be.

    Raises:
        BudgetEndedError: So it is.
    """
    if played < planned:
        raise BudgetEndedError(
            f"the budget is spent: {played} of {planned} {done} and summed up. Replies that "
            "were kept are not paid for again: the same command, with a larger budget or the same, "
            "goes on."
        )
