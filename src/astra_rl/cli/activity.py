"""Say what a command is doing when it has printed nothing for a while.

The library logs what it does at level INFO ("loading the language model ..."). The last of these
messages is printed on stderr when a command has been silent for `SILENCE` seconds.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

from astra_rl.logging import logger

SILENCE = 2.0
"""Seconds without output after which the activity is printed."""
REPEAT = 10.0
"""Seconds without other output after which it is printed again."""

_waiting = threading.Event()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Context in which a command waits for a person or a browser, and no activity is printed."""
    _waiting.set()
    try:
        yield
    finally:
        _waiting.clear()


class ActivityReporter(logging.Handler):
    """Prints the last message of the library while nothing else is printed; a context manager.

    Args:
        show: Prints a line; called in a thread of its own.
        last_output: Returns when something was last printed, by `time.monotonic`.
    """

    def __init__(self, show: Callable[[str], None], last_output: Callable[[], float]) -> None:
        super().__init__(logging.INFO)
        self._show, self._last_output = show, last_output
        self._activity, self._since = "loading libraries", time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="activity", daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember what the library does now."""
        if record.levelno == logging.INFO:
            self._activity, self._since = record.getMessage(), time.monotonic()

    def __enter__(self) -> Self:
        """Begin to watch."""
        logger.addHandler(self)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop; nothing is printed afterwards."""
        logger.removeHandler(self)
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        begun = time.monotonic()
        shown = -math.inf
        while True:
            due = max(begun, self._last_output()) + SILENCE
            wait = max(due, shown + REPEAT) - time.monotonic()
            if wait <= 0:
                shown = time.monotonic()
                if not _waiting.is_set():
                    self._show(f"{self._activity} ({shown - self._since:.0f} s)")
            elif self._ended.wait(wait):
                return
