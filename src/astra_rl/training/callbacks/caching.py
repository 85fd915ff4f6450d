"""The callback that clears caches of scores."""

from __future__ import annotations

from collections.abc import Callable

from astra_rl.core.common import Metrics
from astra_rl.training.callback import AnyTrainer, TrainerCallback


class ClearCaches(TrainerCallback):
    """Clears caches after each training step, so that they do not grow without bound.

    Args:
        clear: Clears them, for instance ``problem.forget_scores`` of an `HFASTProblem`, or
            ``moderator.forget`` of a `CachedModerator`.
    """

    every_process = True

    def __init__(self, clear: Callable[[], None]) -> None:
        self.clear = clear

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Clear the caches."""
        self.clear()
