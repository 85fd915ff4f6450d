"""Callbacks of transformers in a `Trainer` of this library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerControl, TrainerState, TrainingArguments

from astra_rl.core.common import Metrics
from astra_rl.training.callback import AnyTrainer, TrainerCallback


class TransformersCallback(TrainerCallback):
    """Calls a ``transformers.TrainerCallback`` on the events of a `Trainer`.

    It gets the events ``on_init_end``, ``on_train_begin``, ``on_step_begin``, ``on_step_end``,
    ``on_log``, ``on_evaluate`` (metrics ``eval_score`` and the other numbers of the report),
    ``on_save`` (when a training state is written) and ``on_train_end``. A step is a training step,
    thus an experience with all of its optimizer steps. Of what it asks for in its ``control``,
    ``should_training_stop`` is done.

    Args:
        callback: The callback.
        eval_every: Training steps between evaluations; 0 is never.
        output_dir: Folder of checkpoints.
    """

    def __init__(
        self,
        callback: transformers.TrainerCallback,
        *,
        eval_every: int = 0,
        output_dir: str | Path = "checkpoints",
    ) -> None:
        self.callback = callback
        self.state_key = f"transformers.{type(callback).__name__}"
        self.control = TrainerControl()
        self.state = TrainerState()
        evaluates: dict[str, Any] = {"eval_strategy": "no"}
        if eval_every:  # as EarlyStoppingCallback needs it
            evaluates = {
                "eval_strategy": "steps",
                "eval_steps": eval_every,
                "save_strategy": "steps",
                "save_steps": eval_every,
                "load_best_model_at_end": True,
                "metric_for_best_model": "eval_score",
                "greater_is_better": True,
            }
        self._given = {"output_dir": str(output_dir), "report_to": "none", **evaluates}
        self.args: TrainingArguments | None = None

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Tell it the arguments and the step."""
        config = trainer.config
        self.args = TrainingArguments(
            **self._given,
            max_steps=config.training_steps,
            learning_rate=config.lr,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            seed=config.seed or 0,
            use_cpu=True,  # devices are chosen elsewhere
        )
        self.state.max_steps, self.state.global_step = (
            config.training_steps,
            trainer.completed_steps,
        )
        self._tell(trainer, "on_init_end")
        self._tell(trainer, "on_train_begin")

    def on_step_begin(self, trainer: AnyTrainer, step: int) -> None:
        """Tell it."""
        self._tell(trainer, "on_step_begin")

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Tell it of the step, and of its metrics as of a log."""
        self.state.global_step = step
        self.state.epoch = step / max(1, trainer.config.training_steps)
        self._tell(trainer, "on_step_end")
        shown = {name: value for name, value in logs.items() if math.isfinite(value)}
        self.state.log_history.append({"step": step, **shown})
        self._tell(trainer, "on_log", logs=shown)

    def on_evaluate(
        self, trainer: AnyTrainer, step: int, report: Mapping[str, Any], is_best: bool
    ) -> None:
        """Tell it of the numbers of the report, as ``eval_NAME``; a missing score is left out."""
        self.state.global_step = step
        metrics = {
            f"eval_{name}": float(value)
            for name, value in report.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self._tell(trainer, "on_evaluate", metrics=metrics)
        if is_best:
            self.state.best_metric, self.state.best_global_step = metrics["eval_score"], step

    def on_save(self, trainer: AnyTrainer, step: int) -> None:
        """Tell it."""
        self._tell(trainer, "on_save")

    def on_train_end(self, trainer: AnyTrainer) -> None:
        """Tell it."""
        self._tell(trainer, "on_train_end")

    def state_dict(self) -> dict[str, Any]:
        """Return the best metric, and what the callback exports of its own state."""
        own = self.callback.state() if hasattr(self.callback, "state") else {}
        best = {"metric": self.state.best_metric, "step": self.state.best_global_step}
        return {"best": best, "attributes": dict(own.get("attributes", {}))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.state.best_metric = state["best"]["metric"]
        self.state.best_global_step = state["best"]["step"]
        for name, value in state["attributes"].items():
            setattr(self.callback, name, value)

    def _tell(self, trainer: AnyTrainer, event: str, **more: Any) -> None:
        problem: Any = trainer.algorithm.problem
        changed = getattr(self.callback, event)(
            self.args,
            self.state,
            self.control,
            model=getattr(problem, "attacker", None),
            processing_class=getattr(problem, "tokenizer", None),
            optimizer=trainer.optimizer,
            **more,
        )
        self.control = changed or self.control
        if self.control.should_training_stop:
            trainer.should_stop = True


__all__ = ["TransformersCallback"]
