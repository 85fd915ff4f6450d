"""Running the command line inside the tests."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import pytest
from tests.undrawn import undrawn

from astra_rl.cli import activity, main


@dataclass(frozen=True)
class Done:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


def astra_rl(*arguments: str, cwd: Path, draws: bool = False, offline: bool = True) -> Done:
    """Run a command in this process, as its entry point would.

    Args:
        arguments: Arguments of the command.
        cwd: Its working directory.
        draws: Draw the charts of pages, which takes longer than a toy run.
        offline: Say that there is no network, so that a name that is no folder fails at once.
    """
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["astra-rl", *arguments])
        patch.setenv("COLUMNS", "200")
        patch.setenv("TERM", "dumb")
        # Its lines depend on the speed of the machine; test_activity.py tests them.
        patch.setattr(activity, "SILENCE", 3600)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        try:
            with contextlib.nullcontext() if draws else undrawn():
                main.run()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
