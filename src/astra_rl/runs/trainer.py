"""The trainer of a run: a `Trainer` assembled from a plan and callbacks."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from astra_rl.config.experiment import Experiment
from astra_rl.config.plan import Plan
from astra_rl.config.schema import TrainingConfig
from astra_rl.core.problem import Problem
from astra_rl.errors import TrainingError
from astra_rl.evaluation.judges.reward_watch import RewardWatch
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.moderators.identity import identity_of
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.provenance import labels_of, name_of, versions
from astra_rl.runs.resume import config_digest
from astra_rl.training.callbacks import (
    AttackMetrics,
    AttemptRecorder,
    BestBySuccess,
    BudgetLimit,
    Checkpointing,
    ClearCaches,
    DrawOpponent,
    LearningRateSchedule,
    LoadBest,
    Schedule,
    StepMetrics,
    StopAtSuccess,
    SyncReference,
    TimeLimit,
    Tracking,
    TrainerCallback,
    TrainingStates,
    UnscoredCounts,
    WatchReward,
    linear,
    transformers_schedule,
)
from astra_rl.training.trackers import LOGGED, Tracker
from astra_rl.training.trainer import Trainer


@dataclass(frozen=True)
class RunTrainer:
    """The trainer of a run, and those of its callbacks that have something to report.

    Attributes:
        trainer: Trains.
        budget: Holds the limit that was reached, if one was.
        watch: Comparison of training moderator and judge; None without a held-out judge.
    """

    trainer: Trainer[str, str, Any, Any]
    budget: BudgetLimit
    watch: RewardWatch | None


def build_trainer(
    experiment: Experiment,
    plan: Plan,
    folder: RunFolder,
    tracker: Tracker,
    log: AttemptLog,
    display: TrainerCallback | None = None,
) -> RunTrainer:
    """Assemble the trainer of a run.

    Args:
        experiment: What is trained.
        plan: Its settings.
        folder: Where checkpoints and training states go.
        tracker: Receives the metrics of each step.
        log: Receives every conversation of the training.
        display: Shows progress.
    """
    limits, goal = plan.training, plan.training.stop_at_success
    attacks = AttackMetrics(plan.evaluation.threshold)
    budget = BudgetLimit()
    watch = _watch(experiment, plan)
    checkpoints = Checkpointing(folder.checkpoints, experiment.problem)
    callbacks: list[TrainerCallback] = [
        StepMetrics(),
        _recorder(experiment, plan, folder, log),
        *_draw_opponent(experiment, plan.seed),
        ClearCaches(experiment.forget_scores),
        attacks,
        UnscoredCounts(experiment.problem.moderator),
        *([] if watch is None else [watch]),
        LearningRateSchedule(schedule_of(limits)),
        *_sync_reference(experiment, limits),
        checkpoints,
        Tracking(tracker, conversations=LOGGED if plan.log_completions else 0),
        *([] if display is None else [display]),
        *([] if goal is None else [StopAtSuccess(attacks, goal)]),
        TimeLimit(limits.max_minutes),
        budget,
        *(
            [BestBySuccess(checkpoints, attacks, every=limits.save_every, goal=goal)]
            if limits.save_best
            else []
        ),
        *([LoadBest(checkpoints)] if limits.load_best_model_at_end else []),
        RunIdentity(config_digest(folder), machine_of(experiment.problem)),
        TrainingStates(folder.states, limits.save_every, keep=limits.save_total_limit),
    ]
    trainer = Trainer(
        experiment.training, experiment.environment, experiment.algorithm, callbacks=callbacks
    )
    return RunTrainer(trainer, budget, None if watch is None else watch.watch)


def callbacks_of_every_process(experiment: Experiment, plan: Plan) -> list[TrainerCallback]:
    """Return the callbacks of `build_trainer` that change what is computed, in the same order.

    The processes of a run that write nothing have these only.
    """
    return [
        *_draw_opponent(experiment, plan.seed),
        ClearCaches(experiment.forget_scores),
        LearningRateSchedule(schedule_of(plan.training)),
        *_sync_reference(experiment, plan.training),
    ]


class RunIdentity(TrainerCallback):
    """Keeps in each training state what a resume compares: configuration, versions and machine.

    Args:
        config_sha256: Checksum of the configuration of the run; None if it has no file yet.
        machine: See `machine_of`.
    """

    def __init__(self, config_sha256: str | None, machine: Mapping[str, str]) -> None:
        self.config_sha256, self.machine = config_sha256, dict(machine)

    def state_dict(self) -> dict[str, Any]:
        """Return the checksum, the machine, and the versions of this library and its packages."""
        return {
            "config_sha256": self.config_sha256,
            "versions": versions(),
            "machine": self.machine,
        }


def machine_of(problem: Problem[Any, Any]) -> dict[str, str]:
    """Return what the machine determines of a training: dtype, device and number of threads.

    Each can change the last bits of a result. ``dtype: auto`` and ``device: auto`` are returned as
    what they resolved to.
    """
    trained = next((each for each in problem.parameters() if each.requires_grad), None)
    resolved = {} if trained is None else {"dtype": trained.dtype, "device": trained.device.type}
    found = {**resolved, "threads": torch.get_num_threads(), "processor": platform.machine()}
    return {name: str(value).removeprefix("torch.") for name, value in found.items()}


def saved_identity(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `RunIdentity` kept in a training state; empty if it kept nothing.

    Raises:
        TrainingError: It is not what a run keeps; the state may come from another person.
    """
    callbacks = state.get("callbacks", {})
    found = callbacks.get(RunIdentity.__name__, {}) if isinstance(callbacks, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(found.get("versions", {}), Mapping):
        raise TrainingError(
            "the saved state does not say of which run it is. Restore the folder states, or remove "
            "it to begin again."
        )
    return dict(found)


def schedule_of(limits: TrainingConfig) -> Schedule:
    """Return the learning-rate schedule of a configuration.

    Without `lr_scheduler_type` it is linear from `lr` to `final_lr`, multiplied by the warm-up.
    """
    if limits.lr_scheduler_type is not None:
        return transformers_schedule(
            limits.lr_scheduler_type, limits.lr, limits.steps, warmup_steps=limits.warmup_steps
        )
    final = limits.lr if limits.final_lr is None else limits.final_lr
    return linear(limits.lr, limits.steps, final_lr=final, warmup_steps=limits.warmup_steps)


def _recorder(
    experiment: Experiment, plan: Plan, folder: RunFolder, log: AttemptLog
) -> AttemptRecorder:
    def write(attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            log.append(attempt)
        log.flush()

    return AttemptRecorder(
        write,
        labels_of(
            plan.record, "training", run=name_of(folder), categories=plan.openings.categories
        ),
        judge=identity_of(experiment.problem.moderator).name,
        threshold=plan.evaluation.threshold,
        opponent=lambda: experiment.problem.opponent,
    )


def _draw_opponent(experiment: Experiment, seed: int) -> list[TrainerCallback]:
    if not experiment.problem.has_opponents:
        return []
    return [DrawOpponent(experiment.problem.draw_opponent, seed)]


def _sync_reference(experiment: Experiment, limits: TrainingConfig) -> list[TrainerCallback]:
    if not limits.sync_ref_model:
        return []
    return [
        SyncReference(
            experiment.problem,
            every=limits.ref_model_sync_steps,
            alpha=limits.ref_model_mixup_alpha,
        )
    ]


def _watch(experiment: Experiment, plan: Plan) -> WatchReward | None:
    evaluation = plan.evaluation
    if plan.judge is None or not evaluation.watch:
        return None
    return WatchReward(
        experiment.problem.moderator,
        experiment.judge,
        turns=evaluation.watch,
        seed=plan.seed,
        watch=RewardWatch(high=evaluation.threshold),
    )
