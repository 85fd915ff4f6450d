"""A callback that prints the progress of a training."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from astra_rl.core.common import Metrics
from astra_rl.training.callback import TrainerCallback

if TYPE_CHECKING:
    from astra_rl.training.callback import AnyTrainer


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
        self._begun_at, self._begun = 0, time.monotonic()

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Start the clock."""
        self._begun_at, self._begun = trainer.completed_steps, time.monotonic()

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Print the line of the step."""
        total = trainer.config.training_steps
        per_step = (time.monotonic() - self._begun) / (step - self._begun_at)
        parts = [f"step {step}/{total}"]
        parts += [f"{name} {logs[name]:.4g}" for name in self.metrics if name in logs]
        parts.append(f"{per_step * (total - step):.0f} s left")
        print("  ".join(parts), file=self.stream or sys.stderr, flush=True)
