"""``astra-rl probability``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.options import ResultOptions, Run, SettingOptions


def probability(
    run: Run,
    options: SettingOptions,
    result: ResultOptions,
    conversations: Annotated[
        int, typer.Option("--conversations", "-n", min=2, help="Number of conversations.")
    ] = 400,
    share: Annotated[
        float, typer.Option(help="Share of the conversations sampled from the baseline alone.")
    ] = 0.5,
    splitting: Annotated[
        bool,
        typer.Option(
            "--splitting",
            help=(
                "Adaptive multilevel splitting instead: conversations whose score rises are "
                "copied and continued. Needs no trained attacker; --share is not used."
            ),
        ),
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="Target. Default: the target of the run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder. Default: RUN.")
    ] = None,
) -> None:
    """Estimate the probability of failure in ordinary use by importance sampling or splitting.

    Samples conversations from the baseline and from the trained attacker, and weights them by their
    likelihood under the baseline. This gives an estimate for failures that are too rare for plain
    sampling, or states that none is possible. --fail-on takes 'probability', 'lower(probability)'
    and 'upper(probability)'.
    """
    from astra_rl.actions.probability import ordinary_failure
    from astra_rl.actions.rare import rare_failure
    from astra_rl.evaluation.show.gate import OF_ORDINARY_USE
    from astra_rl.evaluation.stats.rates import describe_rate

    out = result.printer(OF_ORDINARY_USE)
    quiet_libraries()
    if splitting:
        rare = rare_failure(
            run,
            conversations=conversations,
            target=target,
            overrides=options.overrides(),
            output=output,
        )
        out.line(rare.found.text)
        out.path("result", rare.path)
        out.data(rare.found.as_dict())
        out.gate(rare.found)
        return
    estimated = ordinary_failure(
        run,
        conversations=conversations,
        share=share,
        target=target,
        overrides=options.overrides(),
        output=output,
    )
    out.line(estimated.found.text)
    evidence = estimated.found.evidence
    out.line(
        f"{evidence.failures} of {evidence.samples} conversations failed; of those sampled from "
        f"the baseline alone {describe_rate(evidence.plain)}"
        + (f"; {evidence.left_out} left out" if evidence.left_out else "")
    )
    out.path("result", estimated.path)
    out.data(estimated.found.as_dict())
    out.gate(estimated.found)
