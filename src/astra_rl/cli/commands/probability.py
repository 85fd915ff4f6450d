"""``astra-rl probability``: probability of failure in ordinary use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.options import AsJson, BudgetOptions, FailOn, Overrides, Run, overrides_of
from astra_rl.cli.output import Output, conditions_of


def probability(
    budget: BudgetOptions,
    run: Run,
    conversations: Annotated[
        int, typer.Option("--conversations", "-n", min=2, help="Number of conversations.")
    ] = 400,
    share: Annotated[
        float, typer.Option(help="Share of the conversations sampled from the baseline.")
    ] = 0.5,
    target: Annotated[str | None, typer.Option(help="Another target. Default: the run's.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder. Default: RUN.")
    ] = None,
    fail_on: FailOn = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Estimate the probability of failure in ordinary use by importance sampling.

    Samples conversations from the baseline and from the trained attacker and reweights them, which
    estimates failures that are too rare for plain sampling; no number is given if the samples do
    not support one. --fail-on accepts 'probability', 'lower(probability)' and 'upper(probability)'.
    """
    from astra_rl.actions.probability import ordinary_failure
    from astra_rl.evaluation.show.gate import OF_ORDINARY_USE
    from astra_rl.evaluation.stats.rates import describe_rate

    conditions = conditions_of(fail_on, OF_ORDINARY_USE)
    quiet_libraries()
    out = Output(as_json=as_json)
    result = ordinary_failure(
        run,
        conversations=conversations,
        share=share,
        target=target,
        overrides=overrides_of(overrides, budget),
        output=output,
    )
    out.line(result.found.text)
    evidence = result.found.evidence
    out.line(
        f"{evidence.failures} of {evidence.samples} conversations failed; of those sampled from "
        f"the baseline {describe_rate(evidence.plain)}; failure modes not seen in this sample "
        f"could add up to {evidence.unseen:.2g}"
        + (f"; {evidence.left_out} left out" if evidence.left_out else "")
    )
    out.path("result", result.path)
    out.data(result.found.as_dict())
    out.gate(conditions, result.found)
