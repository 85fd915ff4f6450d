"""Callbacks that end a training early."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from astra_rl.core.common import Metrics
from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.logging import logger
from astra_rl.targets.ledger import current_ledger
from astra_rl.training.callback import AnyTrainer, TrainerCallback
from astra_rl.training.callbacks.evaluation import Evaluation
from astra_rl.training.callbacks.metrics import AttackMetrics

NO_SCORES = (
    "EarlyStopping never stops a training without scores: add Evaluation(evaluator, every=...) to "
    "the callbacks, or give the trainer dev_prompts"
)
"""Warning of `EarlyStopping`."""


class EarlyStopping(TrainerCallback):
    """Stops when the evaluation score has not improved for several evaluations.

    Needs `Evaluation` among the callbacks, else it warns. A score that could not be computed (NaN)
    is no improvement.

    Args:
        patience: Stop after this many evaluations in a row without an improvement; at least 1.
        min_delta: A score improves if it exceeds the best one so far by more than this.

    Attributes:
        best_score: Highest score so far; minus infinity before the first evaluation.
        stale: Evaluations in a row without an improvement.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(self, patience: int, *, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ConfigurationError(f"patience={patience}; it must be at least 1.")
        if not 0 <= min_delta < math.inf:
            raise ConfigurationError(f"min_delta={min_delta}; it must be finite and not negative.")
        self.patience, self.min_delta = patience, min_delta
        self.best_score = -math.inf
        self.stale = 0
        self._warned = False

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Stop at once if a resumed training had already met the criterion."""
        evaluations = [each for each in trainer.callbacks if isinstance(each, Evaluation)]
        if not any(each.every for each in evaluations):
            logger.warning(NO_SCORES)
        self._check(trainer)

    def on_evaluate(
        self, trainer: AnyTrainer, step: int, report: Mapping[str, Any], is_best: bool
    ) -> None:
        """Compare the score with the best so far; a report without a score changes nothing."""
        if "score" not in report:  # there is no evaluator
            if not self._warned:
                logger.warning(NO_SCORES)
            self._warned = True
            return
        score = report["score"]
        if score > self.best_score + self.min_delta:
            self.best_score, self.stale = score, 0
        else:
            self.stale += 1
        self._check(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, and the number of evaluations since."""
        return {"best_score": self.best_score, "stale": self.stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best_score, self.stale = state["best_score"], state["stale"]

    def _check(self, trainer: AnyTrainer) -> None:
        if self.stale >= self.patience:
            logger.info("stopping: no better score in %d evaluations", self.stale)
            trainer.should_stop = True


class StopAtSuccess(TrainerCallback):
    """Stops when the moving mean of the training attack success rate reaches a goal.

    Args:
        metrics: Measures the success rate; place it before this callback.
        goal: Success rate to stop at, in (0, 1]. The window of `metrics` must be full.

    Raises:
        ConfigurationError: `goal` is out of range.
    """

    def __init__(self, metrics: AttackMetrics, goal: float) -> None:
        if not 0 < goal <= 1:
            raise ConfigurationError(f"goal={goal}; it must be in (0, 1].")
        self.metrics, self.goal = metrics, goal

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Stop at once if a resumed training had already reached the goal."""
        self._check(trainer)

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Stop if the goal is reached."""
        self._check(trainer)

    def _check(self, trainer: AnyTrainer) -> None:
        recent = list(self.metrics.recent)
        # A NaN among them makes the comparison false.
        if len(recent) == self.metrics.window and sum(recent) / len(recent) >= self.goal:
            trainer.should_stop = True


class TimeLimit(TrainerCallback):
    """Stops after the first step that ends past a time limit; interruptions do not count.

    Args:
        minutes: Wall-clock minutes of training, positive; None measures only.

    Attributes:
        elapsed: Seconds of training up to the latest step, those before a resume included.

    Raises:
        ConfigurationError: `minutes` is not positive.
    """

    def __init__(self, minutes: float | None) -> None:
        if minutes is not None and not minutes > 0:
            raise ConfigurationError(f"minutes={minutes}; it must be positive.")
        self.minutes = minutes
        self.elapsed = 0.0
        self._started = time.perf_counter()

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Start the clock at what has elapsed."""
        self._started = time.perf_counter() - self.elapsed
        self._check(trainer)

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Stop if the time is over."""
        self.elapsed = time.perf_counter() - self._started
        self._check(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the elapsed seconds."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.elapsed = state["elapsed"]

    def _check(self, trainer: AnyTrainer) -> None:
        if self.minutes is not None and self.elapsed >= 60 * self.minutes:
            logger.info("stopping after %g minutes, as configured", self.minutes)
            trainer.should_stop = True


class BudgetLimit(TrainerCallback):
    """Stops after the step in which a limit of the current `Ledger` was reached.

    Attributes:
        spent: The limit that was reached; None while there is budget left.
    """

    def __init__(self) -> None:
        self.spent: BudgetSpentError | None = None

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Stop if a limit is reached."""
        try:
            current_ledger().check()
        except BudgetSpentError as error:
            self.spent = error
            trainer.should_stop = True
