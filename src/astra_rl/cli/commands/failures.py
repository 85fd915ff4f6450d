"""``astra-rl failures``: the most likely failures first."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer
from rich.table import Table

from astra_rl.cli.options import AsJson, Phase, Run
from astra_rl.cli.output import Output, escaped


def failures(
    run: Run,
    phase: Phase = "after",
    by: Annotated[
        str,
        typer.Option(
            help="'total': log-probability of the whole attack; 'per_token': its mean per token."
        ),
    ] = "total",
    under: Annotated[
        str,
        typer.Option(help="Model of the likelihood: 'baseline', 'target' or another recorded one."),
    ] = "baseline",
    most: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Rank successful attacks by their likelihood in ordinary use, the most likely first.

    Also draws severity against likelihood.
    """
    from astra_rl.actions.failures import rank_failures

    out = Output(as_json=as_json)
    found = rank_failures(
        run, phase=phase, under=under, by=cast("Literal['total', 'per_token']", by), most=most
    )
    ranking = found.ranking
    table = Table(title=f"most likely failures under {escaped(under)}")
    for column in ("log-prob (nats)", "per token", "severity", "attack", "response"):
        table.add_column(column)
    for each in ranking.failures:
        turn = each.attempt.failing_turn
        table.add_row(
            f"{each.logprob:.1f}",
            f"{each.per_token:.2f}",
            f"{each.severity:.2f}",
            escaped(turn.attack.strip()[:120]) if turn else "",
            escaped(turn.response.strip()[:120]) if turn else "",
        )
    out.table(table)
    out.line(f"{ranking.ranked} failures ranked, {ranking.unmeasured} without a likelihood")
    out.path("ranking", found.path)
    if found.picture is not None:
        out.path("severity against likelihood", found.picture)
    out.data(ranking.as_dict())
