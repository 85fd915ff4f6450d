"""Functions, commands and scripts in processes of their own, which can be killed.

Each is forked from a server process that has imported everything, so that it starts at once.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRELOADED = [
    "astra_rl.cli.main",
    "astra_rl.cli.display",
    "astra_rl.ext.transformers",
    "astra_rl.runs.runner",
]
LONG = 1200.0


class Forked:
    """A running call of a function.

    Args:
        work: The function. It is found by its name in its module.
        arguments: Its arguments.
        cwd: Its working directory.
        output: File of what it writes on stdout; None discards it.
    """

    def __init__(
        self, work: Callable[..., None], *arguments: Any, cwd: Path, output: Path | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        descriptor, errors = tempfile.mkstemp(prefix="astra-rl-tests-stderr-")
        os.close(descriptor)
        self._errors = Path(errors)
        self._process = context.Process(
            target=_run, args=(work, arguments, str(cwd), str(output or os.devnull), errors)
        )
        self._process.start()

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> tuple[int, str]:
        """Kill it; return what `wait` returns, with the code of its own if it had ended before."""
        self._process.kill()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it wrote on stderr."""
        self._process.join(LONG)
        code = self._process.exitcode
        assert code is not None, f"it did not end within {LONG} seconds"
        errors = self._errors.read_text("utf-8")
        self._errors.unlink()
        return code, errors

    def wait_until_written(self, path: Path) -> None:
        """Wait until it has written something into a file."""
        while not (path.is_file() and path.stat().st_size):
            assert self.is_running(), self.wait()
            time.sleep(0.01)


class Command(Forked):
    """A running ``astra-rl`` command.

    Args:
        arguments: Arguments of the command.
        cwd: Its working directory.
        output: File of what it writes on stdout; None discards it.
    """

    def __init__(self, *arguments: str, cwd: Path, output: Path | None = None) -> None:
        super().__init__(_command, *arguments, cwd=cwd, output=output)


class Script(Forked):
    """A running Python script, in which every warning is an error.

    Args:
        path: The script.
        arguments: Its arguments.
        cwd: Its working directory.
    """

    def __init__(self, path: Path, *arguments: str, cwd: Path) -> None:
        super().__init__(_script, str(path), *arguments, cwd=cwd)


def _run(
    work: Callable[..., None], arguments: tuple[Any, ...], cwd: str, output: str, errors: str
) -> None:
    import huggingface_hub.constants

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    os.chdir(cwd)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    work(*arguments)


def _command(*arguments: str) -> None:
    from astra_rl.cli import main

    sys.argv = ["astra-rl", *arguments]
    os.environ["COLUMNS"] = "10000"
    main.run()


def _script(path: str, *arguments: str) -> None:
    sys.argv = [path, *arguments]
    warnings.simplefilter("error")
    runpy.run_path(path, run_name="__main__")
