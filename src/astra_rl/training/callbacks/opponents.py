"""The callback that draws the target of each training step."""

from __future__ import annotations

from collections.abc import Callable

from astra_rl.core.common import Metrics
from astra_rl.core.seeding import derive_seed
from astra_rl.errors import ConfigurationError
from astra_rl.training.callback import AnyTrainer, TrainerCallback


class DrawOpponent(TrainerCallback):
    """Draws the target that answers in a training step.

    The draw depends on seed and number of the step alone, so a resumed training draws the same.
    Place it after callbacks that read which target answered, such as `AttemptRecorder`.

    Args:
        draw: Called with a seed before each step, and with None after it, when the target under
            test answers again; see `astra_rl.ext.transformers.HFASTProblem.draw_opponent`.
        seed: Seed of the training.
    """

    every_process = True

    def __init__(self, draw: Callable[[int | None], object], seed: int) -> None:
        self.draw, self.seed = draw, seed

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Check that the episodes of a step are played in it.

        Raises:
            ConfigurationError: They are played ahead.
        """
        if trainer.config.max_staleness:
            raise ConfigurationError(
                f"max_staleness={trainer.config.max_staleness}; opponents are drawn step by step, "
                "and episodes are played ahead. Use max_staleness=0."
            )

    def on_step_begin(self, trainer: AnyTrainer, step: int) -> None:
        """Draw the target of the step."""
        self.draw(derive_seed(self.seed, "opponent", step))

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Return to the target under test."""
        self.draw(None)

    def on_train_failed(self, trainer: AnyTrainer, error: Exception) -> None:
        """Return to the target under test; the error may allow an evaluation."""
        self.draw(None)
