"""The callback that moves the reference of the KL penalty after the attacker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from astra_rl.core.common import Metrics
from astra_rl.core.problem import Problem
from astra_rl.errors import ConfigurationError
from astra_rl.training.callback import AnyTrainer, TrainerCallback


class SyncReference(TrainerCallback):
    """Moves the reference of the KL penalty towards the attacker at intervals.

    The KL penalty then limits the change since the last synchronisation instead of the distance
    from the start (Gorbatovski et al. 2024, TR-DPO, arXiv 2404.09656; ``sync_ref_model`` of TRL,
    which counts optimizer steps instead of training steps).

    Args:
        problem: Its reference is moved, see `Problem.sync_reference`.
        every: Training steps between synchronisations, at least 1.
        alpha: Weight of the attacker in the new reference, in (0, 1].

    Raises:
        ConfigurationError: A value is out of range.
    """

    every_process = True

    def __init__(self, problem: Problem[Any, Any], *, every: int = 512, alpha: float = 0.6) -> None:
        if every < 1:
            raise ConfigurationError(f"ref_model_sync_steps={every}; it must be at least 1.")
        if not 0 < alpha <= 1:
            raise ConfigurationError(f"ref_model_mixup_alpha={alpha}; it must be in (0, 1].")
        self.problem, self.every, self.alpha = problem, every, alpha

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Synchronise the reference if it is time."""
        if step % self.every == 0:
            self.problem.sync_reference(self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the reference."""
        return {"weights": self.problem.reference_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the reference."""
        self.problem.load_reference_state(state["weights"])
