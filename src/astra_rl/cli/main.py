"""The command ``astra-rl``: the table of commands, and what an error becomes."""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from astra_rl.cli.commands.calibrate import calibrate
from astra_rl.cli.commands.compare import compare
from astra_rl.cli.commands.demo import demo
from astra_rl.cli.commands.evaluate import evaluate
from astra_rl.cli.commands.export import export
from astra_rl.cli.commands.failures import failures
from astra_rl.cli.commands.forecast import forecast
from astra_rl.cli.commands.harden import harden
from astra_rl.cli.commands.info import info
from astra_rl.cli.commands.init import init
from astra_rl.cli.commands.label import label
from astra_rl.cli.commands.league import league
from astra_rl.cli.commands.list import list
from astra_rl.cli.commands.merge import merge
from astra_rl.cli.commands.probability import probability
from astra_rl.cli.commands.push import push
from astra_rl.cli.commands.regress import regress
from astra_rl.cli.commands.replay import replay
from astra_rl.cli.commands.report import report
from astra_rl.cli.commands.resume import resume
from astra_rl.cli.commands.score import score
from astra_rl.cli.commands.seeds import seeds
from astra_rl.cli.commands.test import test
from astra_rl.cli.commands.train import train
from astra_rl.cli.commands.transfer import transfer
from astra_rl.cli.commands.validate import validate
from astra_rl.cli.commands.view import view
from astra_rl.cli.commands.watch import watch
from astra_rl.cli.console import (
    error_console,
    escape_unencodable_characters,
    logs_on,
    reporting_activity,
    set_verbosity,
)
from astra_rl.cli.exit_codes import ExitCode
from astra_rl.cli.options import OutputOptions, expand_groups, with_output_options
from astra_rl.distributed.launch import check_one_process
from astra_rl.errors import (
    AstraError,
    BudgetEndedError,
    BudgetSpentError,
    ConfigurationError,
    InterruptedRunError,
)

COMMANDS: Mapping[str, Sequence[Callable[..., None]]] = {
    "Run": (test, demo, train, resume, harden),
    "Prepare": (init, validate, list, info),
    "Measure": (evaluate, merge, score, replay, failures, probability, calibrate, label, forecast),
    "Compare": (compare, transfer, seeds, regress, league),
    "Show and share": (report, view, watch, export, push),
}
"""The commands by the panel of --help that lists them; the name of a function is its command."""
ON_SEVERAL_PROCESSES = ("train", "resume")
"""The commands that may be started by torchrun or accelerate."""

# No markup and no locals in tracebacks: a local may hold a key or text of a model.
app = typer.Typer(
    name="astra-rl",
    help=(
        "Find out how a language model fails: train an attacker against it by reinforcement "
        "learning, then report how it fails, how often, and how likely.\n\n"
        "Start with 'astra-rl demo': it needs no network, no key and no GPU."
    ),
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for _panel, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(with_output_options(expand_groups(_command)))


@app.callback()
@expand_groups
def main(context: typer.Context, output: OutputOptions) -> None:
    """Set what is printed; Typer shows the help of the app instead of this text."""
    set_verbosity(quiet=output.quiet, verbose=output.verbose)
    if context.invoked_subcommand not in ON_SEVERAL_PROCESSES:
        check_one_process(f"astra-rl {context.invoked_subcommand}")


def run() -> None:
    """Run the command line and exit with one of `ExitCode`."""
    escape_unencodable_characters()
    try:
        _check_docstrings()
        with logs_on(error_console), reporting_activity():
            _program()(prog_name="astra-rl")
    except BudgetEndedError as error:
        _exit(str(error), ExitCode.BUDGET_EXHAUSTED, "yellow")
    except BudgetSpentError as error:
        _exit(
            f"{error}. Recorded replies are not paid for again: run the same command with a larger "
            "budget to continue.",
            ExitCode.BUDGET_EXHAUSTED,
            "yellow",
        )
    except InterruptedRunError as error:
        _exit(str(error), ExitCode.INTERRUPTED, "yellow")
    except AstraError as error:
        _exit(f"error: {error}", ExitCode.USAGE_ERROR)
    except PermissionError as error:  # of the operating system, wherever it came up
        _exit(
            f"error: no access to {error.filename or 'a file'}: {error.strerror}. Change the "
            "permissions of the path, or name another.",
            ExitCode.USAGE_ERROR,
        )
    except KeyboardInterrupt:
        _exit("interrupted", ExitCode.INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            is_full = error.errno in (errno.EMFILE, errno.ENFILE)
            advice = "Raise the limit of open files (ulimit -n)" if is_full else "Name another path"
            _exit(
                f"error: cannot use {error.filename}: {error.strerror}. {advice}.",
                ExitCode.USAGE_ERROR,
            )
        # Not printed by Python itself: a message may hold a credential or text of a model.
        _exit(
            f"{traceback.format_exc()}This is a defect of astra-rl; please report it.",
            ExitCode.DEFECT,
        )


@functools.cache
def _program() -> Any:
    """Return the commands as parsers, made once per process."""
    return typer.main.get_command(app)


def _check_docstrings() -> None:
    """Raise if Python has discarded docstrings: transformers cannot be imported without them.

    Raises:
        ConfigurationError: Python runs with ``-OO``.
    """
    if sys.flags.optimize >= 2:
        raise ConfigurationError(
            f"Python runs with -OO (PYTHONOPTIMIZE={sys.flags.optimize}), which discards the "
            "docstrings that transformers needs. Run it without, or with -O."
        )


def _exit(message: str, code: ExitCode, style: str = "red") -> None:
    error_console.print_line(message, style)
    sys.exit(code)


if __name__ == "__main__":
    run()
