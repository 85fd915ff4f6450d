"""A trainer that evaluates periodically and saves checkpoints in Hugging Face format."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import transformers

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.environment import Environment
from astra_rl.core.evaluator import Evaluator
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.hub import AttackerCard, is_adapter, push_attacker, results_of
from astra_rl.ext.transformers.trainer_callbacks import TransformersCallback
from astra_rl.infra.ranges import Count, CountOrZero
from astra_rl.methods.ast_environment import check_prompts
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.moderators.identity import identity_of
from astra_rl.training.callbacks import (
    AnyTrainer,
    Checkpointing,
    Evaluation,
    LoadBest,
    StepMetrics,
    Tracking,
    TrainerCallback,
    TrainingStates,
)
from astra_rl.training.config import TrainingConfiguration
from astra_rl.training.states import KEPT, load_state
from astra_rl.training.trackers import (
    LOGGED,
    LogTracker,
    MultiTracker,
    ReportTo,
    Tracker,
    check_trackers,
    closed_on_error,
    make_tracker,
)
from astra_rl.training.trainer import Trainer


@dataclass(kw_only=True)
class HFASTConfiguration(TrainingConfiguration):
    """Defaults for fine-tuning a pretrained attacker, and what `HFASTTrainer` saves and reports.

    These have the names of transformers and TRL, and mean the same; a step is a training step.

    Attributes:
        report_to: Trackers that get the metrics of each step, one name or several: mlflow,
            tensorboard (in `ckpt_dir`), trackio, wandb.
        log_completions: Whether they get a table of sampled conversations of each step, too.
        save_steps: Training steps between saved training states (``ckpt_dir/states``); 0 saves
            none.
        save_total_limit: Number of training states to keep, the newest.
        resume_from_checkpoint: True resumes from the newest state in ``ckpt_dir/states``, a path
            from that in the folder.
        load_best_model_at_end: Whether the training ends with the attacker of the best evaluation.
        push_to_hub: Whether the last attacker is uploaded at the end, with a card: over the
            network.
        hub_model_id: ``"owner/name"`` of its repository.
        hub_private_repo: Whether a new repository is private.

    Raises:
        ConfigurationError: A value is out of range, or `push_to_hub` has no `hub_model_id`.
    """

    batch_size: Count = 4
    num_episodes_per_experience: Count = 2
    report_to: ReportTo | Sequence[ReportTo] = "none"
    log_completions: bool = False
    save_steps: CountOrZero = 0
    save_total_limit: Count = KEPT
    resume_from_checkpoint: bool | str | Path | None = None
    load_best_model_at_end: bool = False
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        known = get_args(ReportTo)
        for name in self.trackers:
            if name not in known:
                raise ConfigurationError(f"report_to={name!r}; choose from {', '.join(known)}.")
        if self.push_to_hub and not self.hub_model_id:
            raise ConfigurationError("push_to_hub=True needs hub_model_id='owner/name'.")

    @property
    def trackers(self) -> tuple[ReportTo, ...]:
        """Names in `report_to`, each once."""
        given = (self.report_to,) if isinstance(self.report_to, str) else self.report_to
        return tuple(dict.fromkeys(each for each in given if each != "none"))


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
        callbacks: Further callbacks, also of transformers (see `TransformersCallback`). They run
            after the evaluation and before the tracker, so the metrics that they add are tracked.

    Raises:
        ConfigurationError: `dev_prompts` is empty, or given together with an evaluator;
            `eval_every` is negative; the attacker cannot be saved; or there is nothing to resume.
        MissingDependencyError: The package of a tracker is not installed.
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
        callbacks: Sequence[TrainerCallback | transformers.TrainerCallback] = (),
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
        own = config if isinstance(config, HFASTConfiguration) else HFASTConfiguration()
        check_trackers(own.trackers)
        states = self.ckpt_dir / "states"
        with closed_on_error(self._reported(own)) as reported:
            every = MultiTracker([self.tracker, reported])
            self.callbacks += [
                StepMetrics(),
                self._evaluation,
                *(self._accepted(each) for each in callbacks),
                self._checkpoints,
                Tracking(every, conversations=LOGGED if own.log_completions else 0),
                *([LoadBest(self._checkpoints)] if own.load_best_model_at_end else []),
                *([_Push(self, own)] if own.push_to_hub else []),
            ]
            if own.save_steps:
                kept = own.save_total_limit
                self.callbacks.append(TrainingStates(states, own.save_steps, keep=kept))
            if own.resume_from_checkpoint:
                is_own = own.resume_from_checkpoint is True
                self._resume(states if is_own else Path(str(own.resume_from_checkpoint)))

    def _accepted(
        self, callback: TrainerCallback | transformers.TrainerCallback
    ) -> TrainerCallback:
        if not isinstance(callback, transformers.TrainerCallback):
            return callback
        every = self.eval_every if self.evaluator is not None else 0
        return TransformersCallback(callback, eval_every=every, output_dir=self.ckpt_dir)

    def _reported(self, own: HFASTConfiguration) -> Iterator[Tracker]:
        """Yield the trackers of `report_to`, if this process writes files."""
        folder = self.ckpt_dir.resolve()
        run = hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()
        settings = {
            name: value
            for name, value in vars(self.config).items()
            if isinstance(value, int | float | str | bool)
        }
        names = own.trackers if self.ranks.is_first else ()
        resumes = bool(own.resume_from_checkpoint)
        for name in names:
            yield make_tracker(name, folder=folder, run=run, settings=settings, resumes=resumes)

    def _resume(self, states: Path) -> None:
        """Continue from the newest state of a folder.

        Raises:
            ConfigurationError: There is none.
        """
        found = load_state(states)
        if found is None:
            raise ConfigurationError(
                f"resume_from_checkpoint: no training state in {states}. Train with save_steps=25 "
                "to have some, or name the folder that has them."
            )
        self.load_state_dict(found[1])

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


class _Push(TrainerCallback):
    """Uploads the last attacker with its card when the training has ended."""

    def __init__(self, trainer: HFASTTrainer, own: HFASTConfiguration) -> None:
        self.trainer, self.own = trainer, own

    def on_train_end(self, trainer: AnyTrainer) -> None:
        """Upload it."""
        folder, problem = self.trainer.ckpt_dir / "last", trainer.algorithm.problem
        best = self.trainer.best_score
        card = AttackerCard(
            name=str(self.own.hub_model_id).rpartition("/")[2],
            base_model=_name_of(getattr(problem, "attacker", None)),
            target=getattr(getattr(problem, "target", None), "name", "a model in the same process"),
            moderator=identity_of(problem.moderator).name,
            algorithm=type(trainer.algorithm).__name__,
            results=results_of({"best evaluation score": best} if math.isfinite(best) else {}),
            is_adapter=is_adapter(folder),
        )
        assert self.own.hub_model_id is not None
        push_attacker(folder, self.own.hub_model_id, card, private=self.own.hub_private_repo)


def _name_of(model: Any) -> str:
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "a model in memory")
