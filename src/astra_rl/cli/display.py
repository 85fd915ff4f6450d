"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from astra_rl.runs.runner import Display


class ConsoleDisplay(Display):
    """Prints the stages of a run and, per training step, reward, success rate, speed and time left.

    Args:
        console: Receives the output. If it is not a terminal, every step is one plain line.
        max_minutes: Time limit of the training; None is no limit.
    """

    def __init__(self, console: Console, *, max_minutes: float | None = None) -> None:
        self.console = console
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self.steps = 0
        self._progress: Progress | None = None
        self._started = 0.0

    def stage(self, name: str) -> None:
        """Print the name of the stage."""
        self.console.print(f"[bold]{name}[/bold] ...")

    def training_begins(self, steps: int) -> None:
        """Open the progress bar."""
        self.steps, self._started = steps, time.perf_counter()
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=self.console,
        )
        self._progress.add_task("training", total=steps, numbers="")
        self._progress.start()

    def training_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the metrics of the step."""
        left = self._seconds_left(step)
        numbers = (
            f"reward {metrics['reward']:+.2f}  "
            f"success {metrics['asr']:4.0%}  "
            f"kinds {_number(metrics['effective_attacks'])}  "
            f"{metrics['tokens'] / metrics['step_time']:4.0f} tokens/s  "
            f"{left / 60:.1f} min left"
        )
        if self._progress is None:
            self.console.print(f"step {step}/{self.steps}  {numbers}", highlight=False)
        else:
            self._progress.update(self._progress.task_ids[0], completed=step, numbers=numbers)

    def training_ends(self) -> None:
        """Close the progress bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _seconds_left(self, step: int) -> float:
        elapsed = time.perf_counter() - self._started
        left = elapsed / step * (self.steps - step)
        if self.max_seconds is not None:
            left = min(left, max(0.0, self.max_seconds - elapsed))
        return left


def _number(value: float) -> str:
    return "   -" if math.isnan(value) else f"{value:4.1f}"
