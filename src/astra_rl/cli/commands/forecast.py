"""``astra-rl forecast``."""

from __future__ import annotations

from typing import Annotated

import typer

from astra_rl.cli.options import AsJson, Phase, Run
from astra_rl.cli.output import Printer


def forecast(
    run: Run,
    tries: Annotated[
        list[int] | None,
        typer.Option(
            "--tries", min=1, help="Tries per prompt. Repeatable. Default: 10, 100, 1000."
        ),
    ] = None,
    queries: Annotated[
        list[int] | None,
        typer.Option(
            "--queries",
            min=1,
            help="Number of queries of which the likeliest failure is forecast. Repeatable.",
        ),
    ] = None,
    phase: Phase = "after",
    as_json: AsJson = False,
) -> None:
    """Forecast success beyond the sample: at many tries, and the likeliest failure of many queries.

    Needs several trials per prompt (evaluate --trials). A forecast that the data cannot carry is
    refused, with the reason.
    """
    from astra_rl.evaluation.stats.forecast import forecast_largest_rate, forecast_success
    from astra_rl.runs.recorded import summary_of_phase

    out = Printer(as_json=as_json)
    summary = summary_of_phase(run, phase)
    prompts, unscored = summary.by_prompt, summary.asr.unscored
    at_tries = [
        forecast_success(prompts, each, unscored=unscored) for each in tries or (10, 100, 1000)
    ]
    at_queries = [forecast_largest_rate(prompts, each) for each in queries or ()]
    if unscored:
        out.line(f"of the trials that were made: {summary.asr.bounds_text}")
    if summary.asr.sequential:
        out.line(
            "the evaluation could stop early (--until), so forecasts lean toward its condition"
        )
    out.line("share of prompts with a success")
    for found in at_tries:
        out.line(f"  {found.text}")
    if at_queries:
        out.line("failure probability of the likeliest query")
    for found in at_queries:
        out.line(f"  {found.text}")
    out.data(
        {
            "unscored": unscored,
            "stopped_early": summary.asr.sequential,
            "success_at": [each.as_dict() for each in at_tries],
            "largest_of": [each.as_dict() for each in at_queries],
        }
    )
