"""A trainer that evaluates, keeps the best attacker and saves it in Hugging Face format."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import torch

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import Metrics
from astra_rl.core.environment import Environment
from astra_rl.core.evaluator import Evaluator
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.infra.checkpointing import replace_folder, write_checksums
from astra_rl.infra.jsonio import write_json
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.methods.ast_problem import check_prompts
from astra_rl.training.config import TrainingConfiguration
from astra_rl.training.trackers import LogTracker, Tracker
from astra_rl.training.trainer import Trainer


@dataclass(kw_only=True)
class HFASTConfiguration(TrainingConfiguration):
    """Defaults for fine-tuning a pretrained attacker."""

    lr: float = 1e-5
    batch_size: int = 4
    training_steps: int = 1000
    num_episodes_per_experience: int = 2


class HFASTTrainer(Trainer[str, str, Any, Any]):
    """Trains, evaluates every `eval_every` steps, and saves Hugging Face checkpoints.

    ``ckpt_dir/last`` holds the newest attacker and ``ckpt_dir/best`` the one with the best
    evaluation so far; each is a folder that ``AutoModelForCausalLM.from_pretrained`` opens, with a
    ``metrics.json`` beside the weights, and checksums that are looked at when it is loaded. Both
    are replaced whole, never written over.

    Args:
        config: Hyperparameters.
        environment: Plays the episodes of training, and of evaluation.
        algorithm: Turns episodes into a loss; its problem must have ``save(folder)``, as
            `HFASTProblem` does, or an ``attacker`` and a ``tokenizer`` to save.
        dev_prompts: Opening contexts of the evaluation. Without any there is no evaluation.
        eval_every: Training steps between evaluations; 0 never evaluates.
        ckpt_dir: Where checkpoints go; made if missing.
        evaluator: Evaluates; its result needs a number under ``"score"``, higher is better. None
            is an `ASTEvaluator` over `dev_prompts`.
        tracker: Receives the metrics of each step. None logs them.

    Attributes:
        best_score: Highest score so far; minus infinity before the first evaluation.
        best_step: The training step it belongs to.

    Raises:
        ConfigurationError: `dev_prompts` is given and empty, or given beside an evaluator;
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
    ) -> None:
        super().__init__(config, environment, algorithm)
        problem = algorithm.problem
        attacker = getattr(problem, "attacker", None)
        if not (hasattr(problem, "save") or hasattr(attacker, "save_pretrained")):
            raise ConfigurationError(
                f"{type(problem).__name__} has neither save(folder) nor an attacker with "
                "save_pretrained(folder), so nothing could be saved; use Trainer, or add one."
            )
        if eval_every < 0:
            raise ConfigurationError(f"eval_every={eval_every}; it must be 0 (never) or positive.")
        if isinstance(dev_prompts, str):
            check_prompts(dev_prompts)  # raises, saying what to give instead
        if dev_prompts is not None:
            if evaluator is not None:
                raise ConfigurationError(
                    "dev_prompts and evaluator are both given; give the prompts to the evaluator."
                )
            evaluator = ASTEvaluator(environment, check_prompts(list(dev_prompts)))
        self.evaluator = evaluator
        self.eval_every = eval_every
        self.ckpt_dir = Path(ckpt_dir)
        with storing(self.ckpt_dir):
            self.ckpt_dir.mkdir(parents=True, exist_ok=True)
        self.tracker = LogTracker() if tracker is None else tracker
        self.best_score = -math.inf
        self.best_step: int | None = None
        self._saved_step: int | None = None
        self._step_started = time.perf_counter()

    def on_train_begin(self) -> None:
        """Start the clock."""
        self._step_started = time.perf_counter()

    def on_step_end(self, step: int, logs: Metrics) -> None:
        """Track the step; evaluate and save if it is time to."""
        now = time.perf_counter()
        metrics = {
            **self.harness.experience_metrics(),
            **logs,
            "step_time": now - self._step_started,
        }
        if self.eval_every and step % self.eval_every == 0:
            metrics |= {
                f"eval/{name}": value for name, value in self._evaluate_and_save(step).items()
            }
        self.tracker.log(metrics, step)
        self._step_started = time.perf_counter()

    def on_train_end(self) -> None:
        """Save the last attacker and close the tracker."""
        if self._saved_step != self.completed_steps:
            self.save("last", {"step": self.completed_steps})
        self.tracker.close()

    def on_train_failed(self) -> None:
        """Close the tracker. The last checkpoint stays; only if there is none, one is saved."""
        if self._saved_step is None:
            self.save("last", {"step": self.completed_steps})
        self.tracker.close()

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any] | None:
        """Evaluate the attacker on the dev prompts; None if there are none."""
        return None if self.evaluator is None else self.evaluator.evaluate(progress=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the training, and of its evaluations."""
        best = {"score": self.best_score, "step": self.best_step, "saved": self._saved_step}
        return {**super().state_dict(), "best": best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        super().load_state_dict(state)
        best = state["best"]
        self.best_score, self.best_step, self._saved_step = (
            best["score"],
            best["step"],
            best["saved"],
        )

    def save(self, name: str, metrics: dict[str, Any]) -> Path:
        """Save attacker, tokenizer and metrics as ``ckpt_dir/name``, atomically.

        Returns:
            The folder.
        """
        folder = self.ckpt_dir / name
        problem: Any = self.algorithm.problem
        with replace_folder(folder) as temporary:
            if hasattr(problem, "save"):
                problem.save(temporary)
            else:
                problem.attacker.save_pretrained(temporary)
                problem.tokenizer.save_pretrained(temporary)
            write_json(metrics, temporary / "metrics.json")
            write_checksums(temporary)
        return folder

    def _evaluate_and_save(self, step: int) -> Metrics:
        report = self.evaluate()
        self._saved_step = step
        if report is None:
            self.save("last", {"step": step})
            return {}
        score = _score_of(report, self.evaluator)
        record = {"step": step, **{k: v for k, v in report.items() if k != "conversations"}}
        self.save("last", record)
        # A score that could not be computed is not a number, and never the best.
        if score > self.best_score:
            self.best_score, self.best_step = score, step
            self.save("best", record)
            logger.info("step %d: new best score %.4f", step, score)
        return {"score": score, "best_score": self.best_score}


def _score_of(report: dict[str, Any], evaluator: object) -> float:
    score = report.get("score", "nothing")
    if score is None:  # how JSON says NaN
        return math.nan
    if isinstance(score, str) or not isinstance(score, SupportsFloat):
        raise ContractError(
            f"{type(evaluator).__name__} returned {score!r} under 'score'. Return a number there, "
            "higher is better, NaN if it could not be computed."
        )
    return float(score)
