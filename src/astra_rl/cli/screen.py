"""Progress of a run on a terminal: a screen that is drawn again and again, or plain lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.text import Text

from astra_rl.errors import require
from astra_rl.evaluation.show.escaping import shorten, terminal_text
from astra_rl.infra.redaction import redact_message
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.progress import CURVES, read_progress

if TYPE_CHECKING:
    from astra_rl.runs.progress import Progress

REFRESH = 2.0
"""Seconds between two readings of the run."""
LONGEST = 300
"""Most characters of a text of a model."""


def as_line(text: str) -> str:
    """Return text of a model on one line, with its control characters visible."""
    return shorten(terminal_text(redact_message(text.strip())), LONGEST)


def headline(progress: Progress) -> str:
    """Return where the run is and what it has spent, on one line."""
    parts = [
        "complete" if progress.is_complete else "in progress",
        f"step {progress.step}",
        f"{progress.attempts} conversations",
        *([f"endpoint calls: {progress.spent}"] if progress.spent else []),
    ]
    return "   ".join(parts)


def plain_lines(progress: Progress) -> Iterator[str]:
    """Yield the progress as plain lines, for output that is no terminal."""
    yield headline(progress)
    for name, values in progress.curves.items():
        if values:
            yield f"{CURVES[name]}: {values[-1]:.3g} (from {values[0]:.3g})"
    for attempt in progress.successes:
        turn = attempt.failing_turn
        yield f"success: {as_line(attempt.failing_request)}"
        yield f"  reply: {as_line(turn.response) if turn else ''}"


def screen(folder: RunFolder) -> Any:
    """Return a textual app that shows the progress of a run until it is left with ``q``.

    Texts of models are shown as text: no markup of theirs is interpreted.

    Raises:
        MissingDependencyError: The extra ``screen`` is not installed.
    """
    require("textual", extra="screen")
    from textual.app import App
    from textual.containers import Horizontal, Vertical
    from textual.widgets import DataTable, Footer, Sparkline, Static

    class RunScreen(App[None]):
        TITLE = "astra-rl"
        BINDINGS = [("q", "quit", "Quit")]  # noqa: RUF012, as textual declares it
        CSS = """
        #curves { height: 6; }
        #curves Vertical { border: round $primary; padding: 0 1; }
        Sparkline { height: 2; }
        """

        def compose(self) -> Any:
            yield Static(id="headline", markup=False)
            with Horizontal(id="curves"):
                for name in CURVES:
                    with Vertical():
                        yield Static(CURVES[name], id=f"label-{name}", markup=False)
                        yield Sparkline([], id=f"curve-{name}")
            yield DataTable(id="successes", cursor_type="row")
            yield Footer()

        def on_mount(self) -> None:
            self.query_one(DataTable).add_columns("latest successful attacks", "reply")
            self.show()
            self.set_interval(REFRESH, self.show)

        def show(self) -> None:
            """Read the run and draw it."""
            progress = read_progress(folder)
            name_of_run = as_line(folder.path.name)
            self.query_one("#headline", Static).update(f"{name_of_run}   {headline(progress)}")
            for name, values in progress.curves.items():
                last = f" {values[-1]:.3g}" if values else ""
                self.query_one(f"#label-{name}", Static).update(f"{CURVES[name]}{last}")
                self.query_one(f"#curve-{name}", Sparkline).data = values
            table = self.query_one(DataTable)
            table.clear()
            for attempt in progress.successes:
                turn = attempt.failing_turn
                texts = (attempt.failing_request, turn.response if turn else "")
                table.add_row(*(Text(as_line(text)) for text in texts))

    return RunScreen()
