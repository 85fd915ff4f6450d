"""The callback that evaluates the attacker during training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, SupportsFloat

import torch

from astra_rl.core.common import Metrics
from astra_rl.core.evaluator import Evaluator
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.training.callback import AnyTrainer, TrainerCallback


class Evaluation(TrainerCallback):
    """Evaluates the attacker every few training steps, and tells the other callbacks.

    Adds ``eval/score`` and ``eval/best_score`` to the log of the step. Place it before `Tracking`.

    Args:
        evaluator: Its report holds a number under ``"score"``, higher is better; None or NaN if it
            could not be computed.
        every: Training steps between evaluations; 0 never evaluates.

    Attributes:
        best_score: Highest score so far; minus infinity before the first evaluation.
        best_step: The training step it belongs to; None before the first score.

    Raises:
        ConfigurationError: `every` is negative.
    """

    def __init__(self, evaluator: Evaluator[Any, Any] | None, every: int = 200) -> None:
        if every < 0:
            raise ConfigurationError(f"eval_every={every}; it must be 0 (never) or positive.")
        self.evaluator, self.every = evaluator, every
        self.best_score = -math.inf
        self.best_step: int | None = None

    @torch.no_grad()
    def evaluate(self, trainer: AnyTrainer) -> Mapping[str, Any] | None:
        """Return the report of an evaluation; None if there is no evaluator."""
        return None if self.evaluator is None else self.evaluator.evaluate(progress=False)

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Evaluate if it is time to."""
        if not self.every or step % self.every:
            return
        report = self.evaluate(trainer)
        if report is None:
            trainer.on_evaluate(step, {}, is_best=False)
            return
        score = _score_of(report, self.evaluator)
        is_best = score > self.best_score  # false if it is NaN
        if is_best:
            self.best_score, self.best_step = score, step
        logs |= {"eval/score": score, "eval/best_score": self.best_score}
        trainer.on_evaluate(step, {**report, "score": score}, is_best=is_best)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and its step."""
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best_score, self.best_step = state["best_score"], state["best_step"]


def _score_of(report: Mapping[str, Any], evaluator: object) -> float:
    score = report.get("score", "nothing")
    if score is None:  # JSON has no NaN
        return math.nan
    if isinstance(score, str) or not isinstance(score, SupportsFloat):
        raise ContractError(
            f"{type(evaluator).__name__} returned {score!r} under 'score'. Return a number there, "
            "higher is better, NaN if it could not be computed."
        )
    return float(score)
