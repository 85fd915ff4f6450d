"""A callback that prints the progress of a training."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from astra_rl.core.common import Metrics
from astra_rl.training.callback import AnyTrainer, TrainerCallback


class Pace:
    """Speed of a training since it began or was resumed, for the time left.

    Args:
        completed: Training steps completed at the start.

    Attributes:
        started: Time of the start, in seconds of ``time.monotonic``.
    """

    def __init__(self, completed: int = 0) -> None:
        self.completed, self.started = completed, time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def seconds_left(self, step: int, total: int) -> float:
        """Return the seconds until step `total`, after step `step`, at the mean speed so far."""
        return self.elapsed / (step - self.completed) * (total - step)


class PrintProgress(TrainerCallback):
    """Prints one line per training step: the step, metrics, and the time left.

    Put it after the callbacks whose metrics it prints; ``reward`` is added by `StepMetrics`.

    Args:
        metrics: Names in the log of a step that are printed; a name that is not there is left out.
        stream: Receives the lines; None means the standard error of the moment.
    """

    def __init__(
        self, metrics: Sequence[str] = ("reward", "loss"), stream: TextIO | None = None
    ) -> None:
        self.metrics, self.stream = tuple(metrics), stream
        self._pace = Pace()

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Start the clock."""
        self._pace = Pace(trainer.completed_steps)

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Print the line of the step."""
        total = trainer.config.training_steps
        parts = [f"step {step}/{total}"]
        parts += [f"{name} {logs[name]:.4g}" for name in self.metrics if name in logs]
        parts.append(f"{self._pace.seconds_left(step, total):.0f} s left")
        print("  ".join(parts), file=self.stream or sys.stderr, flush=True)
