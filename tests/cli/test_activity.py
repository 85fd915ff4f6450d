"""A command that prints nothing for two seconds says on stderr what it is doing."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from astra_rl.cli import activity
from astra_rl.cli.activity import ActivityReporter
from astra_rl.cli.console import SafeConsole
from astra_rl.logging import logger

LONG = 60.0


class Shown:
    """What was shown, and an event for each line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.happened = threading.Semaphore(0)

    def __call__(self, text: str) -> None:
        self.lines.append(text)
        self.happened.release()

    def wait(self) -> str:
        assert self.happened.acquire(timeout=LONG)
        return self.lines[-1]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(activity, "SILENCE", 0.01)
    monkeypatch.setattr(activity, "REPEAT", 0.02)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("at_once")
def test_the_last_message_of_the_library_is_shown_again_and_again() -> None:
    shown = Shown()
    with ActivityReporter(shown, lambda: 0.0):
        assert re.fullmatch(r"loading libraries \(\d+ s\)", shown.wait())
        logger.info("loading the %s %s", "language model", "a/b")
        logger.debug("not this")
        while not shown.wait().startswith("loading the language model a/b ("):
            pass
        logger.info("playing conversations %d to %d of %d", 1, 8, 9)
        while not shown.wait().startswith("playing conversations 1 to 8 of 9 ("):
            pass
    count = len(shown.lines)
    logger.info("something else")
    assert not shown.happened.acquire(timeout=0.05) or len(shown.lines) == count


@pytest.mark.usefixtures("at_once")
def test_nothing_is_shown_while_something_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that the clock is read for the last output, there was one a moment ago."""
    shown, asked, now = Shown(), threading.Semaphore(0), [0.0]
    monkeypatch.setattr(activity, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def just_now() -> float:
        now[0] += 1.0
        asked.release()
        return now[0]

    with ActivityReporter(shown, just_now):
        for _ in range(5):
            assert asked.acquire(timeout=LONG)
    assert shown.lines == []


@pytest.mark.usefixtures("at_once")
def test_nothing_is_shown_while_a_command_waits_for_a_person() -> None:
    shown, looked = Shown(), threading.Semaphore(0)

    def long_ago() -> float:
        looked.release()
        return 0.0

    with activity.waiting(), ActivityReporter(shown, long_ago):
        for _ in range(5):
            assert looked.acquire(timeout=LONG)
    assert shown.lines == []
    with ActivityReporter(shown, long_ago):
        assert shown.wait().startswith("loading libraries")


def test_output_of_any_console_and_a_progress_bar_count_as_output() -> None:
    import io
    import time

    from rich.progress import Progress

    before = time.monotonic()
    SafeConsole(file=io.StringIO()).print("text")
    printed = SafeConsole.last_output()
    assert printed >= before
    assert SafeConsole.last_output() == printed
    with Progress(console=SafeConsole(file=io.StringIO(), force_terminal=True)):
        assert SafeConsole.last_output() > printed
        assert SafeConsole.last_output() > SafeConsole.last_output() - 1
    assert SafeConsole.last_output() <= time.monotonic()


PROGRAM = """
import sys, threading
from unittest import mock
from astra_rl.cli import activity, main
from astra_rl.logging import logger

activity.SILENCE = activity.REPEAT = 0.01
shown = threading.Event()

def work(*_, **__):
    logger.info("judging conversations 1 to 3 of \\x1b[31m9")
    if {quiet}:
        shown.wait(0.2)
        return
    show = main.error_console.print
    def noticed(*objects, **options):
        show(*objects, **options)
        if "judging" in str(objects[0]):  # the thread may still be about to say what was before
            shown.set()
    with mock.patch.object(main.error_console, "print", noticed):
        assert shown.wait(60)

with mock.patch("astra_rl.cli.topics.print_topic", work):
    sys.argv = ["astra-rl", *{options}, "info"]
    main.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [False, True])
def test_the_command_line_shows_it_on_stderr_escaped_unless_quiet(quiet: bool) -> None:
    program = PROGRAM.format(quiet=quiet, options=["--quiet"] if quiet else [])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert ("judging conversations 1 to 3 of" in done.stderr) != quiet
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
