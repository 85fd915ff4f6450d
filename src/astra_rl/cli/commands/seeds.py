"""``astra-rl seeds``: spread between training seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.options import AsJson, FailOn, Phase
from astra_rl.cli.output import Output, conditions_of


def seeds(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs that differ in their seed only.")
    ],
    phase: Phase = "after",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the numbers to this file.")
    ] = None,
    fail_on: FailOn = None,
    as_json: AsJson = False,
) -> None:
    """Report the variance between attackers trained with different seeds.

    It is separate from the interval of each run, which is about prompts. --fail-on is checked for
    every seed.
    """
    from astra_rl.actions.seeds import compare_seeds
    from astra_rl.infra.jsonio import write_json

    conditions = conditions_of(fail_on)
    out = Output(as_json=as_json)
    found = compare_seeds(runs, phase=phase)
    out.summaries({f"seed {seed}": each for seed, each in found.summaries.items()})
    out.line(found.spread.text)
    if output is not None:
        write_json(found.as_dict(), output)
        out.path("file", output)
    out.data(found.as_dict())
    out.gate(conditions, *found.summaries.values())
