"""Hyperparameters of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import optim

from astra_rl.errors import ConfigurationError, did_you_mean

OPTIMIZERS: dict[str, type[optim.Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "sgd": optim.SGD,
    "rmsprop": optim.RMSprop,
    "adagrad": optim.Adagrad,
}
"""Optimizers by their names in a configuration."""
SchedulerType = Literal["constant", "constant_with_warmup", "linear", "cosine"]
"""Learning-rate schedules of transformers by the names that it and TRL give them."""
ADAM = ("adam", "adamw")
"""Optimizers that have `adam_beta1`, `adam_beta2` and `adam_epsilon`."""


@dataclass(kw_only=True)
class TrainingConfiguration:
    """Hyperparameters of a training run. A subclass may add attributes of its own.

    Attributes:
        lr: Learning rate.
        batch_size: Algorithm steps (pairs or attacks) per backward pass.
        optimizer: One of `OPTIMIZERS`.
        adam_beta1: Decay of the mean of gradients in ``adam`` and ``adamw``, in [0, 1).
        adam_beta2: Decay of the mean of squared gradients in them, in [0, 1).
        adam_epsilon: Added to the root of that mean in them; positive.
        weight_decay: Weight decay: decoupled in ``adamw``, an L2 penalty in the others; not
            negative.
        gradient_accumulation_steps: Backward passes per optimizer step.
        training_steps: Number of experiences.
        num_episodes_per_experience: Episodes per experience.
        max_grad_norm: Maximum norm of the gradients (clipping); None does not clip.
        max_nonfinite_losses: Abort after this many consecutive optimizer steps whose loss or
            gradient is not finite; fewer are skipped.
        max_unscored_steps: Abort after this many consecutive training steps without a valid reward.
        seed: Seed of the episodes and of the order of batches; None is not reproducible.

    Raises:
        ConfigurationError: A value is out of range; the message says what is allowed.
    """

    lr: float = 1e-5
    batch_size: int = 8
    optimizer: str = "adamw"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    gradient_accumulation_steps: int = 1
    training_steps: int = 1000
    num_episodes_per_experience: int = 8
    max_grad_norm: float | None = 1.0
    max_nonfinite_losses: int = 3
    max_unscored_steps: int = 5
    seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, str) or self.optimizer not in OPTIMIZERS:
            raise ConfigurationError(
                f"optimizer={self.optimizer!r}; choose from {sorted(OPTIMIZERS)}."
                + did_you_mean(str(self.optimizer), OPTIMIZERS)
            )
        _check_positive("lr", self.lr)
        _check_positive("adam_epsilon", self.adam_epsilon)
        for name, most in (("adam_beta1", 1), ("adam_beta2", 1), ("weight_decay", math.inf)):
            if not 0 <= getattr(self, name) < most:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)}; it must be in [0, {most})."
                )
        if self.max_grad_norm is not None:
            _check_positive("max_grad_norm", self.max_grad_norm)
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "num_episodes_per_experience",
            "max_nonfinite_losses",
            "max_unscored_steps",
        ):
            _check_whole(name, getattr(self, name), least=1)
        _check_whole("training_steps", self.training_steps, least=0)
        if self.seed is not None:
            _check_whole("seed", self.seed, least=0)

    def optimizer_options(self) -> dict[str, Any]:
        """Return the arguments of the optimizer's class, without parameters."""
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer in ADAM:
            options["betas"] = (self.adam_beta1, self.adam_beta2)
            options["eps"] = self.adam_epsilon
        return options


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name}={value!r}; it must be a number.")
    if not (0 < value < math.inf):
        raise ConfigurationError(f"{name}={value}; it must be positive and finite.")


def _check_whole(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{name}={value!r}; it must be a whole number.")
    if value < least:
        raise ConfigurationError(f"{name}={value}; it must be at least {least}.")
