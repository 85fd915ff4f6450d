"""Consoles of the command line: escaped, redacted, and in the encoding of the stream."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.text import Text

from astra_rl.cli.activity import ActivityReporter
from astra_rl.distributed.launch import is_first_process
from astra_rl.errors import StorageError
from astra_rl.evaluation.show.escaping import visible_text
from astra_rl.infra.redaction import redact_message
from astra_rl.logging import logger

UNWRAPPED = 10_000
"""Width, in characters, of output that is not read on a terminal: in effect, no wrapping."""


class SafeConsole(Console):
    """A console that prints every string as text, also a string that a model wrote.

    Control characters, invisible characters and changes of text direction become visible symbols;
    credentials are redacted. Markup of rich is still interpreted: escape text of unknown origin, or
    print it with ``markup=False``.

    Output that goes to a pipe or a file is not wrapped, so that a command in it can be copied. If
    the stream cannot be written to (closed by ``| head``, full disk), the console prints nothing
    more: the work of a command, for instance a training, does not fail for its output. Where the
    output is the result, call `check_written`.

    Attributes:
        verbose: Whether `logs_on` prints the library's messages of level INFO.
    """

    # Of all consoles together: they share a terminal.
    _last_output = -math.inf
    _is_live = False

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)
        self.verbose = False
        self._failure: OSError | None = None

    def set_live(self, live: Live) -> bool:
        """Note that a progress bar is shown; called by rich."""
        SafeConsole._is_live = True
        return super().set_live(live)

    def clear_live(self) -> None:
        """Note that the progress bar has ended; called by rich."""
        SafeConsole._is_live = False
        super().clear_live()

    @classmethod
    def last_output(cls) -> float:
        """Time of the last output of any console; now while a progress bar is shown.

        By the clock `time.monotonic`.
        """
        return time.monotonic() if cls._is_live else cls._last_output

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a string; rich calls this for all printed strings and for the cells of tables."""
        return super().render_str(visible_text(redact_message(text)), **options)

    @property
    def size(self) -> ConsoleDimensions:
        """Width and height in characters; COLUMNS sets the width of output that is no terminal."""
        if self.is_terminal or self._width is not None:
            return super().size
        columns = os.environ.get("COLUMNS", "")
        return ConsoleDimensions(int(columns) if columns.isdigit() else UNWRAPPED, 25)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; an error of the stream is logged once."""
        SafeConsole._last_output = time.monotonic()
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._failure = error
            self.on_broken_pipe()
            logger.warning("cannot print more: %s", error.strerror)

    def print_line(self, text: str, style: str | None = None) -> None:
        """Print a line as it is: without markup, highlighting or wrapping."""
        self.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def check_written(self) -> None:
        """Check that all output was written; a reader that closed the pipe has read enough.

        Raises:
            StorageError: It was not, for instance because the disk is full.
        """
        if self._failure is not None:
            raise StorageError(
                f"cannot write the output: {self._failure.strerror}. What was written is "
                "incomplete: free disk space, and run the command again."
            ) from self._failure

    def on_broken_pipe(self) -> None:
        """Print nothing more; rich would exit, and so end a training."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.file.fileno())
            os.close(null)


console = SafeConsole()
"""Standard output, for people."""
error_console = SafeConsole(stderr=True)
"""Standard error, for errors and warnings."""


def print_result(text: str) -> None:
    """Print a result on stdout for a program to read, unchanged.

    Raises:
        StorageError: It cannot be written, for instance because the disk is full.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        console.on_broken_pipe()
    except OSError as error:
        console._failure = error
        console.on_broken_pipe()
        console.check_written()


def escape_unencodable_characters() -> None:
    """Let stdout and stderr write characters that their encoding lacks as escape sequences.

    Without it, one such character in a reply of a model raises UnicodeEncodeError where the
    encoding is not UTF-8, for instance cp1252, at the end of a run that is otherwise complete.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Set what people see: nothing but warnings and errors, or messages of level INFO too."""
    console.quiet, error_console.quiet = quiet, False
    error_console.verbose = verbose


def add_verbosity(*, quiet: bool, verbose: bool) -> None:
    """As `set_verbosity`, but what was chosen before stays chosen."""
    set_verbosity(quiet=console.quiet or quiet, verbose=error_console.verbose or verbose)


def reporting_activity() -> ActivityReporter:
    """Return a context in which a silent command says on stderr what it is doing."""

    def show(text: str) -> None:
        if not console.quiet and is_first_process():
            error_console.print_line(text, "dim")

    return ActivityReporter(show, SafeConsole.last_output)


class _ConsoleHandler(logging.Handler):
    """Prints warnings of every library, and all that astra-rl itself logs if verbose."""

    def __init__(self, console: SafeConsole) -> None:
        super().__init__()
        self.console = console
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        self.addFilter(
            lambda record: (
                record.levelno >= logging.WARNING or (console.verbose and _is_own(record))
            )
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as one paragraph."""
        style = "yellow" if record.levelno >= logging.WARNING else None
        try:
            text = self.format(record)
            self.console.print_line(text, style)
        except Exception:
            self.handleError(record)


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == logger.name


@contextlib.contextmanager
def logs_on(console: SafeConsole) -> Iterator[None]:
    """Print warnings of this library and of others on a console inside the block."""
    root, handler = logging.getLogger(), _ConsoleHandler(console)
    show, level = warnings.showwarning, logger.level

    def log(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        logging.getLogger("py.warnings").warning("%s: %s", category.__name__, message)

    root.addHandler(handler)
    warnings.showwarning = log
    logger.setLevel(logging.INFO)  # also for what the command is doing, see `activity`
    try:
        yield
    finally:
        warnings.showwarning = show
        logger.setLevel(level)
        root.removeHandler(handler)


def quiet_libraries() -> None:
    """Disable the progress bars of transformers and route its warnings to the root logger."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
