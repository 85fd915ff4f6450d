"""A trainer that evaluates periodically and saves checkpoints in Hugging Face format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.environment import Environment
from astra_rl.core.evaluator import Evaluator
from astra_rl.errors import ConfigurationError
from astra_rl.infra.ranges import Count
from astra_rl.methods.ast_environment import check_prompts
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.training.callbacks import (
    AnyTrainer,
    Checkpointing,
    Evaluation,
    StepMetrics,
    Tracking,
    TrainerCallback,
)
from astra_rl.training.config import TrainingConfiguration
from astra_rl.training.trackers import LogTracker, Tracker
from astra_rl.training.trainer import Trainer


@dataclass(kw_only=True)
class HFASTConfiguration(TrainingConfiguration):
    """Defaults for fine-tuning a pretrained attacker."""

    batch_size: Count = 4
    num_episodes_per_experience: Count = 2


class HFASTTrainer(Trainer[str, str, Any, Any]):
    """A `Trainer` with evaluation, Hugging Face checkpoints and a tracker.

    It is composed of the callbacks `StepMetrics`, `Evaluation`, `Checkpointing` and `Tracking`:
    ``ckpt_dir/last`` holds the newest attacker and ``ckpt_dir/best`` the one with the best
    evaluation so far; each is a folder that ``AutoModelForCausalLM.from_pretrained`` opens.

    Args:
        config: Hyperparameters.
        environment: Plays the episodes of training, and of the default evaluation.
        algorithm: Computes the loss; its problem must have ``save(folder)``, as `HFASTProblem`
            does, or an ``attacker`` and a ``tokenizer`` to save.
        dev_prompts: Opening contexts of the evaluation. Without any there is no evaluation.
        eval_every: Training steps between evaluations; 0 never evaluates.
        ckpt_dir: Folder of the checkpoints; made if missing.
        evaluator: Its report needs a number under ``"score"``, higher is better. None is an
            `ASTEvaluator` over `dev_prompts`.
        tracker: Receives the metrics of each step. None logs them.
        callbacks: Further callbacks. They run after the evaluation and before the tracker, so the
            metrics that they add are tracked.

    Raises:
        ConfigurationError: `dev_prompts` is empty, or given together with an evaluator;
            `eval_every` is negative; or the attacker cannot be saved.
    """

    def __init__(
        self,
        config: TrainingConfiguration,
        environment: Environment[str, str],
        algorithm: Algorithm[str, str, Any, Any],
        *,
        dev_prompts: Iterable[str] | None = None,
        eval_every: int = 200,
        ckpt_dir: str | Path = "checkpoints",
        evaluator: Evaluator[str, str] | None = None,
        tracker: Tracker | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(config, environment, algorithm)
        if isinstance(dev_prompts, str):
            check_prompts(dev_prompts)  # raises with a message that says what to give instead
        if dev_prompts is not None:
            if evaluator is not None:
                raise ConfigurationError(
                    "dev_prompts and evaluator are both given; give the prompts to the evaluator."
                )
            evaluator = ASTEvaluator(environment, check_prompts(list(dev_prompts)))
        self.tracker = LogTracker() if tracker is None else tracker
        self._evaluation = _OwnEvaluation(evaluator, eval_every)
        self._checkpoints = Checkpointing(ckpt_dir, algorithm.problem)
        self.callbacks += [
            StepMetrics(),
            self._evaluation,
            *callbacks,
            self._checkpoints,
            Tracking(self.tracker),
        ]

    @property
    def evaluator(self) -> Evaluator[str, str] | None:
        """The evaluator; None if there is no evaluation."""
        return self._evaluation.evaluator

    @property
    def eval_every(self) -> int:
        """Training steps between evaluations; 0 never evaluates."""
        return self._evaluation.every

    @property
    def ckpt_dir(self) -> Path:
        """Folder of the checkpoints."""
        return self._checkpoints.folder

    @property
    def best_score(self) -> float:
        """Highest score so far; minus infinity before the first evaluation."""
        return self._evaluation.best_score

    @property
    def best_step(self) -> int | None:
        """The training step of the highest score; None before the first score."""
        return self._evaluation.best_step

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, Any] | None:
        """Evaluate the attacker on the dev prompts; None if there are none. May be overridden."""
        return None if self.evaluator is None else self.evaluator.evaluate(progress=False)

    def save(self, name: str, metrics: Mapping[str, Any]) -> Path:
        """Save attacker, tokenizer and metrics as ``ckpt_dir/name``, atomically.

        Returns:
            The folder of the checkpoint.
        """
        return self._checkpoints.save(name, metrics)


class _OwnEvaluation(Evaluation):
    """Evaluates by `HFASTTrainer.evaluate`, which a subclass may override."""

    def evaluate(self, trainer: AnyTrainer) -> Mapping[str, Any] | None:
        assert isinstance(trainer, HFASTTrainer)
        return trainer.evaluate()
