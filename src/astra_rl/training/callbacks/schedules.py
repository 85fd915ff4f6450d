"""Learning-rate schedules: pure functions of the training step, and the callback that applies one.

A schedule maps a training step, counted from 0, to a learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

from astra_rl.core.common import Metrics
from astra_rl.errors import ConfigurationError
from astra_rl.training.callback import AnyTrainer, TrainerCallback
from astra_rl.training.config import SchedulerType

Schedule = Callable[[int], float]


def constant(lr: float, *, warmup_steps: int = 0) -> Schedule:
    """Return a constant learning rate after a linear warm-up from zero.

    Args:
        lr: Learning rate, positive.
        warmup_steps: Steps in which the rate rises linearly; step 0 has ``lr / warmup_steps``.

    Raises:
        ConfigurationError: A value is out of range.
    """
    return linear(lr, 1, final_lr=lr, warmup_steps=warmup_steps)


def linear(lr: float, steps: int, *, final_lr: float = 0.0, warmup_steps: int = 0) -> Schedule:
    """Return a linear decay from `lr` at step 0 to `final_lr` at step ``steps - 1``.

    Args:
        lr: Initial learning rate, positive.
        steps: Training steps, at least 0; later steps have `final_lr`.
        final_lr: Final learning rate, not negative.
        warmup_steps: The rate of the first steps is multiplied by ``(step + 1) / warmup_steps``.

    Raises:
        ConfigurationError: A value is out of range.
    """
    _check(lr, steps, final_lr, warmup_steps)
    return partial(_linear, lr=lr, final_lr=final_lr, steps=steps, warmup_steps=warmup_steps)


def cosine(lr: float, steps: int, *, final_lr: float = 0.0, warmup_steps: int = 0) -> Schedule:
    """Return half a cosine from `lr` at step 0 to `final_lr` at step ``steps - 1``.

    Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5, without restarts.

    Args:
        lr: See `linear`.
        steps: See `linear`.
        final_lr: See `linear`.
        warmup_steps: See `linear`.

    Raises:
        ConfigurationError: A value is out of range.
    """
    _check(lr, steps, final_lr, warmup_steps)
    return partial(_cosine, lr=lr, final_lr=final_lr, steps=steps, warmup_steps=warmup_steps)


def transformers_schedule(kind: str, lr: float, steps: int, *, warmup_steps: int = 0) -> Schedule:
    """Return a schedule with the rates of transformers' `get_scheduler`, over training steps.

    As there, the rate rises from zero at step 0 to `lr` at step `warmup_steps`, and ``"linear"``
    and ``"cosine"`` fall to zero at step `steps`.

    Args:
        kind: ``"constant"``, ``"constant_with_warmup"``, ``"linear"`` or ``"cosine"``.
        lr: Highest learning rate, positive.
        steps: Training steps.
        warmup_steps: Steps of the warm-up; ignored by ``"constant"``.

    Raises:
        ConfigurationError: A value is out of range, or an unknown kind.
    """
    _check(lr, steps, 0.0, warmup_steps)
    known = list(get_args(SchedulerType))
    if kind not in known:
        raise ConfigurationError(f"lr_scheduler_type={kind!r}; choose from {known}.")
    return partial(_transformers, kind=kind, lr=lr, steps=steps, warmup_steps=warmup_steps)


class LearningRateSchedule(TrainerCallback):
    """Sets the learning rate of every training step, and logs it as ``lr``.

    The rate is a function of the step alone, so a resumed training continues the schedule without
    any state of its own.

    Args:
        schedule: Maps a training step, counted from 0, to its learning rate: `constant`, `linear`,
            `cosine`, or a function of your own.
    """

    every_process = True

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def on_train_begin(self, trainer: AnyTrainer) -> None:
        """Set the learning rate of the first step."""
        self._apply(trainer, trainer.completed_steps)

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Log the learning rate of the step, and set that of the next."""
        logs["lr"] = self.schedule(step - 1)
        self._apply(trainer, step)

    def _apply(self, trainer: AnyTrainer, step: int) -> None:
        for group in trainer.optimizer.param_groups:
            group["lr"] = self.schedule(step)


def _linear(step: int, *, lr: float, final_lr: float, steps: int, warmup_steps: int) -> float:
    rate = lr + _progress(step, steps) * (final_lr - lr)
    return _warmup(step, warmup_steps) * rate


def _cosine(step: int, *, lr: float, final_lr: float, steps: int, warmup_steps: int) -> float:
    decay = 0.5 * (1 + math.cos(math.pi * _progress(step, steps)))
    return _warmup(step, warmup_steps) * (final_lr + decay * (lr - final_lr))


def _transformers(step: int, *, kind: str, lr: float, steps: int, warmup_steps: int) -> float:
    if kind == "constant":
        return lr
    if step < warmup_steps:
        return lr * step / warmup_steps
    if kind == "constant_with_warmup":
        return lr
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return lr * (1 - progress if kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress)))


def _progress(step: int, steps: int) -> float:
    return min(1.0, step / max(1, steps - 1))


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _check(lr: float, steps: int, final_lr: float, warmup_steps: int) -> None:
    if not 0 < lr < math.inf:
        raise ConfigurationError(f"lr={lr}; it must be positive and finite.")
    if not 0 <= final_lr < math.inf:
        raise ConfigurationError(f"final_lr={final_lr}; it must be finite and not negative.")
    for name, value in (("steps", steps), ("warmup_steps", warmup_steps)):
        if value < 0:
            raise ConfigurationError(f"{name}={value}; it must be 0 or more.")
