"""``astra-rl failures``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.table import Table

from astra_rl.cli.options import AsJson, Phase, Run
from astra_rl.cli.output import Printer, as_text, excerpt

if TYPE_CHECKING:
    from astra_rl.evaluation.measures.likely_failures import Ranking


def failures(
    run: Run,
    phase: Phase = "after",
    by: Annotated[
        str,
        typer.Option(
            help="Sort by log-probability of the attack: 'total', or 'per_token' (its mean)."
        ),
    ] = "total",
    under: Annotated[
        str,
        typer.Option(
            help="Model of the log-probability: 'baseline', 'target' or another recorded one."
        ),
    ] = "baseline",
    most: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 10,
    as_json: AsJson = False,
) -> None:
    """List successful attacks, the most likely in ordinary use first.

    Also draws severity against log-probability.
    """
    from astra_rl.actions.failures import rank_failures

    out = Printer(as_json=as_json)
    found = rank_failures(
        run,
        phase=phase,
        under=under,
        by=cast("Literal['total', 'per_token']", by),
        most=most,
    )
    ranking = found.ranking
    out.table(_table(ranking, under))
    out.line(f"{ranking.ranked} failures ranked, {ranking.unmeasured} without a log-probability")
    out.path("ranking", found.path)
    if found.picture is not None:
        out.path("chart", found.picture)
    out.data(ranking.as_dict())


def _table(ranking: Ranking, under: str) -> Table:
    table = Table(title=f"most likely failures under {as_text(under)}")
    for column in ("log-probability", "per token", "severity", "opening and attack", "response"):
        table.add_column(column)
    for each in ranking.failures:
        turn = each.attempt.failing_turn
        table.add_row(
            f"{each.logprob:.1f}",
            f"{each.per_token:.2f}",
            f"{each.severity:.2f}",
            excerpt(each.attempt.failing_request),
            excerpt(turn.response) if turn else "",
        )
    return table
