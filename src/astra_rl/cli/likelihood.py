"""Commands on how likely failures are, and on training seeds. Thin over `astra_rl.runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console
from rich.table import Table

from astra_rl.cli.budget import (
    MaxCost,
    MaxMinutes,
    MaxRequests,
    MaxTokens,
    budget_settings,
)
from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.output import (
    AsJson,
    FailOn,
    Overrides,
    Phase,
    Run,
    Shown,
    conditions_of,
    shown,
)


def register(app: typer.Typer, console: Console) -> None:
    """Add the commands to the command line."""

    @app.command()
    def failures(
        run: Run,
        phase: Phase = "after",
        by: Annotated[
            str,
            typer.Option(
                help="'total': probability of the very words; 'per_token': how ordinary they read."
            ),
        ] = "total",
        under: Annotated[
            str, typer.Option(help="Whose likelihood: 'baseline', 'target' or another recorded.")
        ] = "baseline",
        most: Annotated[int, typer.Option(min=1, help="How many to show.")] = 10,
        as_json: AsJson = False,
    ) -> None:
        """Rank failing conversations, the most likely in ordinary use first.

        Also draws severity against likelihood.
        """
        from astra_rl.actions.failures import rank_failures

        out = Shown(console, as_json=as_json)
        found = rank_failures(
            run,
            phase=phase,
            under=under,
            by=cast("Literal['total', 'per_token']", by),
            most=most,
        )
        ranking = found.ranking
        table = Table(title=f"most likely failures under {shown(under)}")
        for column in ("nats", "per token", "severity", "attack", "response"):
            table.add_column(column)
        for each in ranking.failures:
            turn = each.attempt.failing_turn
            table.add_row(
                f"{each.logprob:.1f}",
                f"{each.per_token:.2f}",
                f"{each.severity:.2f}",
                shown(turn.attack.strip()[:120]) if turn else "",
                shown(turn.response.strip()[:120]) if turn else "",
            )
        out.table(table)
        out.line(f"{ranking.ranked} failures ranked, {ranking.unmeasured} without a likelihood")
        out.path("ranking", found.path)
        if found.picture is not None:
            out.path("severity against likelihood", found.picture)
        out.data(ranking.as_dict())

    @app.command()
    def probability(
        run: Run,
        conversations: Annotated[
            int, typer.Option("--conversations", "-n", min=2, help="How many to hold.")
        ] = 400,
        share: Annotated[
            float, typer.Option(help="Part of them that ordinary use leads itself.")
        ] = 0.5,
        target: Annotated[
            str | None, typer.Option(help="Another target. Default: the run's.")
        ] = None,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="Folder. Default: RUN.")
        ] = None,
        fail_on: FailOn = None,
        as_json: AsJson = False,
        overrides: Overrides = None,
        max_requests: MaxRequests = None,
        max_tokens: MaxTokens = None,
        max_cost: MaxCost = None,
        max_minutes: MaxMinutes = None,
    ) -> None:
        """Estimate how probable failure is in ordinary use, with the attacker's help.

        Holds conversations led by the baseline and by the trained attacker and weighs them
        (importance sampling), so that failures far too rare to count still get a number, or a plain
        refusal. --fail-on takes 'probability', 'lower(probability)' and 'upper(probability)'.
        """
        from astra_rl.actions.probability import ordinary_failure
        from astra_rl.evaluation.show.gate import OF_ORDINARY_USE
        from astra_rl.evaluation.stats.rates import describe_rate

        conditions = conditions_of(fail_on, OF_ORDINARY_USE)
        quiet_libraries()
        out = Shown(console, as_json=as_json)
        result = ordinary_failure(
            run,
            conversations=conversations,
            share=share,
            target=target,
            overrides=[
                *(overrides or ()),
                *budget_settings(max_requests, max_tokens, max_cost, max_minutes),
            ],
            output=output,
        )
        out.line(result.found.text)
        evidence = result.found.evidence
        out.line(
            f"{evidence.failures} of {evidence.samples} conversations failed; of those led by "
            f"ordinary use itself {describe_rate(evidence.plain)}; kinds of failure that nobody "
            f"said yet are less probable than {evidence.unseen:.2g}"
            + (f"; {evidence.left_out} left out" if evidence.left_out else "")
        )
        out.path("result", result.path)
        out.data(result.found.as_dict())
        out.gate(conditions, result.found)

    @app.command()
    def seeds(
        runs: Annotated[
            list[Path], typer.Argument(metavar="RUN...", help="Runs that differ in their seed.")
        ],
        phase: Phase = "after",
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="Write the numbers to this file.")
        ] = None,
        fail_on: FailOn = None,
        as_json: AsJson = False,
    ) -> None:
        """Say how much attackers differ that were trained with different seeds.

        It is kept apart from the interval of each, which is about prompts. --fail-on is checked for
        every seed.
        """
        from astra_rl.actions.seeds import compare_seeds
        from astra_rl.infra.jsonio import write_json

        conditions = conditions_of(fail_on)
        out = Shown(console, as_json=as_json)
        found = compare_seeds(runs, phase=phase)
        out.summaries({f"seed {seed}": each for seed, each in found.summaries.items()})
        out.line(found.spread.text)
        if output is not None:
            write_json(found.as_dict(), output)
            out.path("file", output)
        out.data(found.as_dict())
        out.gate(conditions, *found.summaries.values())
