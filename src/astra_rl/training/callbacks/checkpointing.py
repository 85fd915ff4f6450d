"""Callbacks that save: attackers in Hugging Face format, and training states for exact resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astra_rl.core.common import Metrics
from astra_rl.core.problem import Problem
from astra_rl.errors import BudgetSpentError, ConfigurationError, EndpointError, TrainingError
from astra_rl.infra.checkpointing import replace_folder, write_checksums
from astra_rl.infra.jsonio import write_json
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.training.callback import AnyTrainer, TrainerCallback
from astra_rl.training.callbacks.metrics import AttackMetrics
from astra_rl.training.states import KEPT, save_state


class Checkpointing(TrainerCallback):
    """Saves attackers: ``folder/last`` the newest, ``folder/best`` the one with the best score.

    ``last`` is written after each evaluation and at the end of the training, ``best`` after an
    evaluation with a new highest score; see `Evaluation`. Each is a folder that
    ``AutoModelForCausalLM.from_pretrained`` opens, with ``metrics.json`` beside the weights and
    checksums that are verified when it is loaded. A folder is replaced as a whole, atomically.

    Args:
        folder: Where checkpoints go; made if missing.
        problem: The problem to be trained. It must have ``save(folder)``, as `HFASTProblem` does,
            or an ``attacker`` and a ``tokenizer`` with ``save_pretrained(folder)``.

    Attributes:
        best_step: Training step of the best checkpoint that this object saved; None before it.

    Raises:
        ConfigurationError: The attacker of `problem` cannot be saved.
        StorageError: The folder cannot be made.
    """

    def __init__(self, folder: str | Path, problem: Problem[Any, Any]) -> None:
        attacker = getattr(problem, "attacker", None)
        if not (hasattr(problem, "save") or hasattr(attacker, "save_pretrained")):
            raise ConfigurationError(
                f"{type(problem).__name__} has neither save(folder) nor an attacker with "
                "save_pretrained(folder), so nothing could be saved; use Trainer, or add one."
            )
        self.folder = Path(folder)
        self.problem: Any = problem
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._saved_step: int | None = None
        self.best_step: int | None = None

    def save(self, name: str, metrics: Mapping[str, Any]) -> Path:
        """Save attacker, tokenizer and metrics as ``folder/name``, atomically.

        Returns:
            The folder of the checkpoint.
        """
        place = self.folder / name
        with replace_folder(place) as temporary:
            if hasattr(self.problem, "save"):
                self.problem.save(temporary)
            else:
                self.problem.attacker.save_pretrained(temporary)
                self.problem.tokenizer.save_pretrained(temporary)
            write_json(dict(metrics), temporary / "metrics.json")
            write_checksums(temporary)
        if name == "best":
            self.best_step = metrics.get("step")
        return place

    def on_evaluate(
        self, trainer: AnyTrainer, step: int, report: Mapping[str, Any], is_best: bool
    ) -> None:
        """Save the attacker, also as the best one if its score is the highest so far."""
        self._saved_step = step
        record = {"step": step, **{k: v for k, v in report.items() if k != "conversations"}}
        self.save("last", record)
        if is_best:
            self.save("best", record)
            logger.info("step %d: new best score %.4f", step, report["score"])

    def on_train_end(self, trainer: AnyTrainer) -> None:
        """Save the last attacker."""
        if self._saved_step != trainer.completed_steps:
            self.save("last", {"step": trainer.completed_steps})

    def on_train_failed(self, trainer: AnyTrainer, error: Exception) -> None:
        """Save the last good attacker if training failed before there was any checkpoint."""
        if self._saved_step is None and isinstance(error, TrainingError):
            self.save("last", {"step": trainer.completed_steps})

    def state_dict(self) -> dict[str, Any]:
        """Return the step that was saved last."""
        return {"saved_step": self._saved_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._saved_step = state["saved_step"]


class BestBySuccess(TrainerCallback):
    """Saves the attacker with the best training success rate, judged on a fixed schedule.

    For trainings whose evaluation prompts must stay held out: choosing a checkpoint by its score
    on them would use them for training. The schedule does not depend on interruptions, so a
    resumed training saves the same attacker.

    Args:
        checkpoints: Saves the attacker, as ``best``.
        metrics: Measures the moving mean of the success rate; place it before this callback.
        every: Training steps between two comparisons; 0 compares after the last step only.
        goal: Success rate at which the training stops, if it does; then it is compared, too.
    """

    def __init__(
        self,
        checkpoints: Checkpointing,
        metrics: AttackMetrics,
        *,
        every: int = 25,
        goal: float | None = None,
    ) -> None:
        self.checkpoints, self.metrics = checkpoints, metrics
        self.every, self.goal = every, goal
        self.best_success = -math.inf

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Save the attacker if the success rate is the highest so far."""
        recent = self.metrics.recent_success
        is_last = step == trainer.config.training_steps
        has_reached_goal = self.goal is not None and recent >= self.goal
        is_due = is_last or has_reached_goal or (self.every > 0 and step % self.every == 0)
        if is_due and recent > self.best_success:
            self.best_success = recent
            self.checkpoints.save("best", {"step": step, "training_success": recent})

    def state_dict(self) -> dict[str, Any]:
        """Return the best success rate."""
        return {"best_success": self.best_success}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best_success = state["best_success"]


class TrainingStates(TrainerCallback):
    """Writes the complete state of the training, from which it resumes bit-exactly.

    A state is written every `every` steps, after the last step, after every step in which no reward
    could be computed (it changed nothing, so an error that ends the training loses nothing), and
    when a budget or an endpoint ends the training. Resume with::

        found = load_state(folder)
        if found is not None:
            trainer.load_state_dict(found[1])
        trainer.train()

    Place it last: a state must include what the other callbacks did in the step.

    Args:
        folder: Where states go, see `save_state`.
        every: Training steps between states; 0 writes one at the end only.
        keep: Number of newest states that are kept; at least 1.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(self, folder: str | Path, every: int = 25, *, keep: int = KEPT) -> None:
        if every < 0:
            raise ConfigurationError(f"every={every}; it must be 0 (at the end only) or positive.")
        if keep < 1:
            raise ConfigurationError(f"keep={keep}; it must be at least 1.")
        self.folder, self.every, self.keep = Path(folder), every, keep
        self._saved_step: int | None = None

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Note the step that the training begins or resumes at; its state needs no saving."""
        self._saved_step = trainer.completed_steps

    def save(self, trainer: AnyTrainer) -> None:
        """Write the state after the latest completed step."""
        trainer.on_save(trainer.completed_steps)
        save_state(self.folder, trainer.completed_steps, trainer.state_dict(), keep=self.keep)
        self._saved_step = trainer.completed_steps

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Write a state if it is time to."""
        is_last = trainer.should_stop or step == trainer.config.training_steps
        if is_last or (self.every and step % self.every == 0) or trainer.unscored_steps:
            self.save(trainer)

    def on_train_end(self, trainer: AnyTrainer) -> None:
        """Write the last state, if a step of this training was not yet saved."""
        if self._saved_step != trainer.completed_steps:
            self.save(trainer)

    def on_train_failed(self, trainer: AnyTrainer, error: Exception) -> None:
        """Write the state if the error came while episodes were played: no weight has changed."""
        if isinstance(error, BudgetSpentError | EndpointError):
            self.save(trainer)
