"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.option_groups import OptionGroup
from astra_rl.targets.budget import Budget

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, written by 'train' or 'demo'.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Run folder. Default: a new folder under ./runs."),
]
Phase = Annotated[
    str,
    typer.Option(
        help="Phase of the run: 'before', 'training', 'after', or a later one such as 'again'."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Random seed. Default: the seed of the configuration."),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Resume even if the configuration or the prompts changed."),
]
Trials = Annotated[int, typer.Option(min=1, help="Conversations per held-out prompt.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="CONDITION",
        help=(
            "Exit with code 3 if the condition holds: 'asr>0.05', 'upper(asr)>10%', "
            "'unscored>0.2'. Can be repeated."
        ),
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON to stdout and everything else to stderr.")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the maximum number of calls and their cost; no call is made, no model loaded.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, for example --set training.steps=50. Can be repeated.",
    ),
]


@dataclass(frozen=True)
class BudgetOptions(OptionGroup):
    """The limits of what a command may spend on calls of endpoints.

    Attributes:
        max_requests: Requests.
        max_tokens: Tokens.
        max_cost: In the currency of the configured prices.
        max_minutes: Wall-clock minutes.
    """

    max_requests: Annotated[
        int | None,
        typer.Option(
            "--max-requests",
            min=1,
            help="Maximum number of requests to endpoints, including retries.",
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=1, help="Maximum number of input and output tokens of endpoints."
        ),
    ] = None
    max_cost: Annotated[
        float | None,
        typer.Option("--max-cost", help="Maximum cost of calls, at the configured prices."),
    ] = None
    max_minutes: Annotated[
        float | None,
        typer.Option("--max-minutes", help="Maximum minutes, summed over all sessions."),
    ] = None

    @property
    def overrides(self) -> list[str]:
        """The limits that were given, as overrides of a configuration."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return [f"budget.{name}={value}" for name, value in given.items()]

    @property
    def budget(self) -> Budget:
        """The limits as a budget.

        Raises:
            ConfigurationError: A limit is out of range.
        """
        return Budget(**asdict(self))


def overrides_of(
    overrides: Sequence[str] | None, budget: BudgetOptions, *, seed: int | None = None
) -> list[str]:
    """Return all options that override settings of a configuration; later ones win."""
    seeds = [] if seed is None else [f"seed={seed}"]
    return [*(overrides or ()), *seeds, *budget.overrides]
