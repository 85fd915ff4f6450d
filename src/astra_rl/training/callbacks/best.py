"""The callback that ends a training with its best attacker instead of its last one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from astra_rl.core.common import Metrics
from astra_rl.distributed.ranks import join
from astra_rl.errors import ConfigurationError
from astra_rl.logging import logger
from astra_rl.training.callback import AnyTrainer, TrainerCallback
from astra_rl.training.callbacks.checkpointing import Checkpointing


def one_process_for_best(processes: int) -> str:
    """Return the message about a best attacker that only one of several processes knows."""
    return (
        f"load_best_model_at_end: true, and {processes} processes were started; it needs one. "
        "Start it without torchrun or accelerate, or leave it out: checkpoints/best holds the best "
        "attacker of such a run, too."
    )


class LoadBest(TrainerCallback):
    """Loads the weights of the best checkpoint at the end, as ``load_best_model_at_end`` does.

    The weights are kept in memory, and in the training states, when ``checkpoints/best`` is saved.
    At the end they replace those of the last step, and ``checkpoints/last`` is saved again. Place
    it after what saves the best checkpoint, and before `TrainingStates`.

    Args:
        checkpoints: Saves the best attacker.
    """

    def __init__(self, checkpoints: Checkpointing) -> None:
        self.checkpoints = checkpoints
        self._step: int | None = None
        self._weights: list[Tensor] = []

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Check that there is one process: the others do not know which checkpoint is the best.

        Raises:
            ConfigurationError: There are several.
        """
        if (count := join().size) > 1:
            raise ConfigurationError(one_process_for_best(count))

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Keep the weights if a new best checkpoint was saved."""
        if self.checkpoints.best_step not in (None, self._step):
            self._step = self.checkpoints.best_step
            self._weights = [each.detach().cpu().clone() for each in _trained(trainer)]

    @torch.no_grad()
    def on_train_end(self, trainer: AnyTrainer) -> None:
        """Load the weights and save them as the last checkpoint."""
        if self._step is None:
            logger.warning("no checkpoint was the best; the attacker of the last step is kept")
            return
        if self._step == trainer.completed_steps:
            return
        for parameter, best in zip(_trained(trainer), self._weights, strict=True):
            parameter.copy_(best)
        logger.info("loaded the attacker of step %d, the best one", self._step)
        self.checkpoints.save("last", {"step": self._step})

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights and their step."""
        return {"step": self._step, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._step, self._weights = state["step"], list(state["weights"])


def _trained(trainer: AnyTrainer) -> list[Parameter]:
    return [each for each in trainer.algorithm.problem.parameters() if each.requires_grad]


__all__ = ["LoadBest", "one_process_for_best"]
