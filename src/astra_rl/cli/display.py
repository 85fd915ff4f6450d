"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from astra_rl.core.common import Metrics
from astra_rl.runs.runner import Display
from astra_rl.training.callback import AnyTrainer
from astra_rl.training.callbacks.progress import Pace

STEPS_MEASURED = 2
"""Steps after which the speed counts as measured."""


class ConsoleDisplay(Display):
    """Prints the stages of a run and, per training step, reward, success rate, speed and time left.

    Args:
        console: Receives the output. If it is not a terminal, every step is one plain line.
        max_minutes: Time limit of the training; None is no limit.
    """

    def __init__(self, console: Console, *, max_minutes: float | None = None) -> None:
        self.console = console
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self._progress: Progress | None = None
        self._pace = Pace()
        self._said_speed = False

    def stage(self, name: str) -> None:
        """Print the name of the stage."""
        self.console.print(f"[bold]{name}[/bold] ...")

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Open the progress bar."""
        self._pace = Pace(trainer.completed_steps)
        self._said_speed = False
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
        self._progress.add_task(
            "training",
            total=trainer.config.training_steps,
            completed=trainer.completed_steps,
            numbers="",
        )
        self._progress.start()

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Print the metrics of the step."""
        total = trainer.config.training_steps
        left = self._pace.seconds_left(step, total)
        if self.max_seconds is not None:
            self._measured(step, total, left)
            left = min(left, max(0.0, self.max_seconds - self._pace.elapsed))
        numbers = (
            f"reward {logs['reward']:+.2f}  "
            f"success {logs['asr']:4.0%}  "
            f"kinds {_number(logs['effective_attacks'])}  "
            f"{logs['tokens'] / logs['step_time']:4.0f} tokens/s  "
            f"{left / 60:.1f} min left"
        )
        if self._progress is None:
            self.console.print(f"step {step}/{total}  {numbers}", highlight=False)
        else:
            self._progress.update(self._progress.task_ids[0], completed=step, numbers=numbers)

    def _measured(self, step: int, total: int, left: float) -> None:
        """Say once how many steps fit into the time limit at the measured speed."""
        assert self.max_seconds is not None
        if self._said_speed or step - self._pace.completed < STEPS_MEASURED or step >= total:
            return
        self._said_speed = True
        pace = left / (total - step)
        fitting = step + math.ceil((self.max_seconds - self._pace.elapsed) / pace)
        steps = f"all {total}" if fitting >= total else f"about {max(step, fitting)} of {total}"
        self.console.print(
            f"measured speed: {pace:.1f} s per step; {steps} steps fit into the limit of "
            f"{self.max_seconds / 60:g} minutes",
            highlight=False,
        )

    def close(self) -> None:
        """Close the progress bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _number(value: float) -> str:
    return "   -" if math.isnan(value) else f"{value:4.1f}"
