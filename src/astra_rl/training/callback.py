"""The interface of a trainer callback."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import Metrics
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.errors import TrainingError
from astra_rl.training.config import TrainingConfiguration
from astra_rl.training.harness import Harness


class AnyTrainer(Protocol):
    """What a callback may use of the trainer that calls it; see `Trainer`."""

    config: TrainingConfiguration
    environment: Environment[Any, Any]
    algorithm: Algorithm[Any, Any, Any, Any]
    harness: Harness[Any, Any, Any, Any]
    optimizer: torch.optim.Optimizer
    callbacks: list[TrainerCallback]
    completed_steps: int
    unscored_steps: int
    should_stop: bool

    def on_evaluate(self, step: int, report: Mapping[str, Any], *, is_best: bool) -> None:
        """Tell all callbacks of an evaluation."""

    def on_save(self, step: int) -> None:
        """Tell all callbacks that a training state is about to be written."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the remaining training depends on."""


class TrainerCallback:
    """Receives the events of a `Trainer`, in the manner of transformers' ``TrainerCallback``.

    Every method does nothing by default; override those you need. A trainer calls its callbacks in
    the order of its ``callbacks`` argument, so a callback sees the metrics that earlier ones added
    to the log. To end the training after the step in progress, set ``trainer.should_stop = True``.

    Attributes:
        state_key: Name that the state is saved under. None is the name of the class; several
            callbacks of a class are then told apart by their order.
        every_process: Whether it runs in every process of a training on several, because it changes
            what is computed. Else it runs in the first only, which writes files and decides when to
            stop.
    """

    state_key: str | None = None
    every_process: bool = False

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Called once, before the first step of this call of `Trainer.train`."""

    def on_step_begin(self, trainer: AnyTrainer, step: int) -> None:
        """Called before the episodes of a training step are played; steps count from 1."""

    def on_experience(self, trainer: AnyTrainer, graphs: Sequence[Graph[Any, Any]]) -> None:
        """Called with the episodes of a step before the algorithm learns from them.

        An exception raised here drops the experience: no weight has changed yet, and
        `Trainer.completed_steps` does not count the step.
        """

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Called after each training step, counted from 1.

        Args:
            trainer: The trainer; ``trainer.harness.graphs`` are the episodes of the step.
            step: The number of the step.
            logs: Metrics of the step. Add entries to have later callbacks, such as `Tracking`,
                see them.
        """

    def on_evaluate(
        self, trainer: AnyTrainer, step: int, report: Mapping[str, Any], is_best: bool
    ) -> None:
        """Called by `Evaluation` after each evaluation.

        Args:
            trainer: The trainer.
            step: The training step that was just completed.
            report: What the evaluator returned; ``report["score"]`` is a float, higher is better,
                NaN if it could not be computed. Empty if there is no evaluator.
            is_best: Whether the score is higher than all before.
        """

    def on_save(self, trainer: AnyTrainer, step: int) -> None:
        """Called by `TrainingStates` just before it writes the state of the training.

        Whatever a callback keeps beside the state (the best attacker so far, for instance) is
        written here, so that the two belong to the same step.
        """

    def on_train_end(self, trainer: AnyTrainer) -> None:
        """Called once after the last step, when no error ended the training."""

    def on_train_failed(self, trainer: AnyTrainer, error: Exception) -> None:
        """Called when an error ends the training, before it is raised.

        See `Trainer.train` for the errors. The weights are those of the last optimizer step whose
        loss and gradient were finite.
        """

    def close(self) -> None:
        """Called last, whatever ended the training, also an interrupt: release resources here."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs of this callback; see `save_state` for types."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def named(callbacks: Sequence[TrainerCallback]) -> dict[str, TrainerCallback]:
    """Return callbacks by the names their states are saved under.

    The name is the `state_key`, or that of the class; a second callback of the same name is
    ``Name.2``, and so on.
    """
    found: dict[str, TrainerCallback] = {}
    for callback in callbacks:
        name = kind = callback.state_key or type(callback).__name__
        number = 1
        while name in found:
            number += 1
            name = f"{kind}.{number}"
        found[name] = callback
    return found


def check_counts(saved: Sequence[str], callbacks: Sequence[TrainerCallback]) -> None:
    """Raise if callbacks of one name cannot be assigned to their saved states.

    Args:
        saved: Names of the callbacks of the saved training, see `named`.
        callbacks: The callbacks of this training.

    Raises:
        TrainingError: There were, or are, several of a name, and their number has changed.
    """
    then, now = _per_name(saved), _per_name(list(named(callbacks)))
    for name in then.keys() & now.keys():
        if then[name] != now[name]:
            raise TrainingError(
                f"the saved state has {then[name]} callbacks {name} and this trainer has "
                f"{now[name]}, so it is not clear whose state is whose. Give the same callbacks in "
                "the same order, or a state_key to each."
            )


def _per_name(names: Sequence[str]) -> Counter[str]:
    """Return the number of callbacks by name, without the number of each."""
    return Counter(re.sub(r"\.\d+$", "", name) for name in names)
