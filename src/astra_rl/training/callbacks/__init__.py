"""Callbacks of a `Trainer`: evaluation, checkpoints, schedules, early stopping, records.

Pass them to ``Trainer(config, environment, algorithm, callbacks=[...])``. They run in the order of
the list, so metrics come first, then what reads them, then `Tracking`, and `TrainingStates` last.
"""

from astra_rl.training.callback import AnyTrainer, TrainerCallback
from astra_rl.training.callbacks.best import LoadBest
from astra_rl.training.callbacks.caching import ClearCaches
from astra_rl.training.callbacks.checkpointing import BestBySuccess, Checkpointing, TrainingStates
from astra_rl.training.callbacks.evaluation import Evaluation
from astra_rl.training.callbacks.metrics import (
    AttackMetrics,
    StepMetrics,
    Tracking,
    UnscoredCounts,
)
from astra_rl.training.callbacks.opponents import DrawOpponent
from astra_rl.training.callbacks.progress import PrintProgress
from astra_rl.training.callbacks.recording import AttemptRecorder
from astra_rl.training.callbacks.references import SyncReference
from astra_rl.training.callbacks.reward_watch import WatchReward
from astra_rl.training.callbacks.schedules import (
    LearningRateSchedule,
    Schedule,
    constant,
    cosine,
    linear,
    transformers_schedule,
)
from astra_rl.training.callbacks.stopping import (
    BudgetLimit,
    EarlyStopping,
    StopAtSuccess,
    TimeLimit,
)

__all__ = [
    "AnyTrainer",
    "AttackMetrics",
    "AttemptRecorder",
    "BestBySuccess",
    "BudgetLimit",
    "Checkpointing",
    "ClearCaches",
    "DrawOpponent",
    "EarlyStopping",
    "Evaluation",
    "LearningRateSchedule",
    "LoadBest",
    "PrintProgress",
    "Schedule",
    "StepMetrics",
    "StopAtSuccess",
    "SyncReference",
    "TimeLimit",
    "Tracking",
    "TrainerCallback",
    "TrainingStates",
    "UnscoredCounts",
    "WatchReward",
    "constant",
    "cosine",
    "linear",
    "transformers_schedule",
]
