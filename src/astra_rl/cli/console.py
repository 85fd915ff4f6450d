"""Terminal output: no control characters, no credentials, any encoding.

A failure to print never fails the command: what it did is done and recorded.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.text import Text

from astra_rl.evaluation.show.escaping import visible_text
from astra_rl.infra.redaction import redact_message

PIPE_WIDTH = 1000
"""Columns of output that is not a terminal: lines and cells are not wrapped there."""


class SafeConsole(Console):
    """A console that prints every string as text, whatever its source.

    Control and bidirectional characters become visible symbols and credentials are redacted.
    Markup of rich still counts: text that may contain some is escaped, or printed with
    ``markup=False``. What cannot be written, for example to a closed pipe, is dropped.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and rows; output that is not a terminal is not wrapped."""
        if self.is_terminal or self._width is not None or "COLUMNS" in os.environ:
            return super().size
        return ConsoleDimensions(PIPE_WIDTH, 25)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a string; rich calls this for all printed strings and table cells."""
        return super().render_str(visible_text(redact_message(text)), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, but drop what the stream does not take."""
        try:
            super().print(*objects, **options)
        except BrokenPipeError:
            silence(self.file)
        except OSError as error:
            logging.getLogger("astra_rl").debug("cannot print: %s", error)


def silence(stream: Any) -> None:
    """Discard further output of a stream whose reader is gone, also that of its last flush."""
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def fit_encodings() -> None:
    """Let stdout and stderr escape the characters that their encoding lacks.

    With an encoding such as cp1252, latin-1 or ASCII they would raise UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self.console = console
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as one paragraph."""
        try:
            text = self.format(record)
            self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def logs_on(console: Console) -> Iterator[None]:
    """Print warnings, of this library and of others, on a console inside the block."""
    root, handler = logging.getLogger(), _ConsoleHandler(console, logging.WARNING)
    show = warnings.showwarning

    def log(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        logging.getLogger("py.warnings").warning("%s: %s", category.__name__, message)

    root.addHandler(handler)
    warnings.showwarning = log
    try:
        yield
    finally:
        warnings.showwarning = show
        root.removeHandler(handler)


def log_verbosely(console: Console) -> None:
    """Also print the INFO messages of this library."""
    logger, handler = logging.getLogger("astra_rl"), _ConsoleHandler(console, logging.INFO)
    handler.addFilter(lambda record: record.levelno < logging.WARNING)  # the others are printed
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def quiet_libraries() -> None:
    """Hide the progress bars of transformers, and pass its warnings to the root logger."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()


console = SafeConsole()
error_console = SafeConsole(stderr=True)
