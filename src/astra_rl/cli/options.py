"""Options that several commands share, declared once.

A command takes a group of options as one parameter, annotated with a dataclass of this module. The
function `expand_groups` replaces that parameter by the fields of the dataclass in the signature
that Typer reads, and builds the dataclass from the values when the command is called. It also
expands ``~`` in paths.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from astra_rl import distribution
from astra_rl.cli.console import add_verbosity, console
from astra_rl.cli.output import Printer, parse_conditions
from astra_rl.infra.user_files import user_path
from astra_rl.targets.budget import Budget

BUDGET_PANEL = "Budget"
"""Heading of the budget options in ``--help``."""

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, as written by train or demo.")
]
Phase = Annotated[
    str,
    typer.Option(
        help=(
            "Phase of the run: 'before', 'training', 'after', or a later evaluation such as "
            "'again'."
        )
    ),
]
Trials = Annotated[int, typer.Option(min=1, help="Number of trials per prompt.")]
Moderator = Annotated[
    str,
    typer.Option(
        "--moderator", "-m", help="Moderator name, or a YAML file with 'type' and 'options'."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0, help="Random seed; runs with equal seeds are equal. Default: from the configuration."
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Resume although the configuration or the prompts have changed."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the endpoint calls and their cost; load no model, make no call.",
        rich_help_panel=BUDGET_PANEL,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, everything else on stderr.")
]


@dataclass(frozen=True)
class BudgetOptions:
    """Limits of a command's endpoint calls and running time; None means no limit."""

    max_requests: Annotated[
        int | None,
        typer.Option(
            "--max-requests",
            min=1,
            help="Maximum number of endpoint requests, including retries.",
            rich_help_panel=BUDGET_PANEL,
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="Maximum number of input and output tokens of all endpoint calls.",
            rich_help_panel=BUDGET_PANEL,
        ),
    ] = None
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost",
            help="Maximum cost of endpoint calls, in the currency of the configured prices.",
            rich_help_panel=BUDGET_PANEL,
        ),
    ] = None
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            help="Maximum running time in minutes, over all sessions.",
            rich_help_panel=BUDGET_PANEL,
        ),
    ] = None

    def limits(self) -> dict[str, float]:
        """Return the limits that were given, by name."""
        limits = {each.name: getattr(self, each.name) for each in fields(BudgetOptions)}
        return {name: value for name, value in limits.items() if value is not None}

    def budget(self) -> Budget | None:
        """Return the limits as a budget; None if none was given.

        Raises:
            ConfigurationError: A limit is out of range.
        """
        limits = self.limits()
        return Budget(**limits) if limits else None  # type: ignore[arg-type]

    def overrides(self) -> list[str]:
        """Return the limits as changes of a configuration, for instance ``budget.max_cost=5``."""
        return [f"budget.{name}={value}" for name, value in self.limits().items()]


@dataclass(frozen=True)
class SettingOptions(BudgetOptions):
    """Changes of the configuration that a command reads."""

    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a setting, for instance training.steps=50. Repeatable.",
        ),
    ] = None

    def overrides(self) -> list[str]:
        """Return ``--set`` and the budget as changes of a configuration; later ones win."""
        return [*(self.settings or ()), *super().overrides()]


@dataclass(frozen=True)
class RunOptions(SettingOptions):
    """Options of the commands that start a run from a configuration."""

    seed: Seed = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Run folder. Default: a new folder in ./runs."),
    ] = None
    dry_run: DryRun = False

    def overrides(self) -> list[str]:
        """Return ``--set``, the budget and the seed as changes of a configuration."""
        seed = [] if self.seed is None else [f"seed={self.seed}"]
        return [*super().overrides(), *seed]


@dataclass(frozen=True)
class ResultOptions:
    """How a command prints its result, and the conditions under which it exits with code 3."""

    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="CONDITION",
            help=(
                "Exit with code 3 if this condition holds, for instance 'asr>0.05', "
                "'upper(asr)>10%' or 'unscored>0.2'. Repeatable."
            ),
        ),
    ] = None
    as_json: AsJson = False

    def printer(self, quantities: Sequence[str] | None = None) -> Printer:
        """Return what prints the result and checks the conditions.

        Args:
            quantities: Names that a condition may use; None means those of an evaluation summary.

        Raises:
            ConfigurationError: A condition cannot be parsed.
        """
        return Printer(
            as_json=self.as_json, conditions=parse_conditions(self.fail_on or (), quantities)
        )


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"astra-rl {distribution.version()}", highlight=False)
        console.check_written()
        raise typer.Exit


@dataclass(frozen=True)
class OutputOptions:
    """What is printed; options of `astra-rl` itself and of each of its commands."""

    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print errors, warnings and JSON only.")
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print the library's log messages.")
    ] = False


def with_output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that also takes `OutputOptions`, as `astra-rl` does before its name."""
    added = _parameters_of(OutputOptions)

    @functools.wraps(command)
    def call(**values: Any) -> None:
        chosen = OutputOptions(**{each.name: values.pop(each.name) for each in added})
        add_verbosity(quiet=chosen.quiet, verbose=chosen.verbose)
        command(**values)

    own = inspect.signature(command).parameters.values()
    call.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in [*own, *added]}
    return call


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose groups of options are single options, after its own.

    Args:
        command: A function; each parameter annotated with a dataclass is a group of options.

    Raises:
        ValueError: Two groups, or a group and a parameter, have an option of the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    own = [
        each.replace(annotation=hints[each.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for each in inspect.signature(command).parameters.values()
        if each.name not in groups
    ]
    parameters = [*own, *(each for group in groups.values() for each in _parameters_of(group))]

    @functools.wraps(command)
    def call(**values: Any) -> None:
        values = {
            name: user_path(each) if isinstance(each, Path) else each
            for name, each in values.items()
        }
        arguments = {
            name: group(**{each.name: values.pop(each.name) for each in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **arguments)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    # Typer keeps the line breaks of a docstring, and breaks the lines of a terminal besides.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    call.__doc__ = "\n\n".join(each.replace("\n", " ") for each in paragraphs)
    return call


def _parameters_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=hints[each.name],
        )
        for each in fields(group)
    ]
