"""Hyperparameters of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.importing import is_path
from astra_rl.infra.ranges import Count, CountOrZero, Decay, NotNegative, Positive, check_fields
from astra_rl.infra.registry import Registry

if TYPE_CHECKING:
    from torch.optim import Optimizer

OPTIMIZERS: Registry[type[Optimizer]] = Registry(
    "optimizer",
    "astra_rl.optimizers",
    {
        "adam": "torch.optim:Adam",
        "adamw": "torch.optim:AdamW",
        "sgd": "torch.optim:SGD",
        "rmsprop": "torch.optim:RMSprop",
        "adagrad": "torch.optim:Adagrad",
    },
)
"""Classes of optimizers by their names in a configuration; called with parameters, ``lr`` and
``weight_decay``."""
SchedulerType = Literal["constant", "constant_with_warmup", "linear", "cosine"]
"""Learning-rate schedules of transformers by the names that it and TRL give them."""
Reduction = Literal["exact", "fast"]
"""How the gradients of several processes are added."""
Sharding = Literal["replicated", "fsdp"]
"""Where several processes keep float32 weights, gradients and optimizer states."""
ADAM = ("adam", "adamw")
"""Optimizers that have `adam_beta1`, `adam_beta2` and `adam_epsilon`."""


@dataclass(kw_only=True)
class UpdateSettings:
    """How the weights are updated; the same settings in Python and in a configuration file.

    Attributes:
        lr: Learning rate, after warm-up if there is one.
        batch_size: Algorithm steps (pairs or attacks) per backward pass.
        optimizer: adagrad, adam, adamw, rmsprop, sgd, or ``package.module:Class``; see
            `OPTIMIZERS`.
        adam_beta1: Decay of the mean of gradients in adam and adamw, in [0, 1).
        adam_beta2: Decay of the mean of squared gradients in adam and adamw, in [0, 1).
        adam_epsilon: Added to the root of that mean in adam and adamw; positive.
        weight_decay: Weight decay, 0 or more: decoupled in adamw, an L2 penalty in the other
            optimizers.
        gradient_accumulation_steps: Backward passes per optimizer step.
        micro_batch_tokens: Most tokens of a backward pass; a batch with more is computed in parts,
            with the same gradient. It bounds the memory of activations. null: as many as take an
            eighth of the machine's memory, or a quarter of the GPU's.
        max_grad_norm: Gradient norm above which gradients are clipped; null: no clipping.
        max_nonfinite_losses: Abort after this many consecutive optimizer steps whose loss or
            gradient is not finite; fewer are skipped.
        max_unscored_steps: Abort after this many consecutive training steps without a valid reward.
        shards: Parts that the work of a step is divided into, for training on several processes;
            null: one per process. With the same number, results do not depend on the number of
            processes.
        reduction: How the gradients of the parts are added: ``"exact"`` in a fixed order, so that
            the weights do not depend on the number of processes, to the last bit; ``"fast"`` in the
            order that the network makes fastest; null: ``"exact"``, with shards ``"fast"``.
        sharding: Where several processes keep float32 weights, gradients and optimizer states:
            ``"replicated"`` all of them in each; ``"fsdp"`` a shard in each, for full fine-tuning
            of large models.
        max_staleness: Training steps by which the weights that sample an experience are older than
            those that learn from it; above 0 it is played while an earlier one is learned from,
            which needs an inference engine for the attacker and ``old_logprobs: corrected``. See
            docs/scaling.md.

    Raises:
        ConfigurationError: A value is out of range; the message says what is allowed.
    """

    lr: Positive = 1e-5
    batch_size: Count = 8
    optimizer: str = "adamw"
    adam_beta1: Decay = 0.9
    adam_beta2: Decay = 0.999
    adam_epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    gradient_accumulation_steps: Count = 1
    micro_batch_tokens: Count | None = None
    max_grad_norm: Positive | None = 1.0
    max_nonfinite_losses: Count = 3
    max_unscored_steps: Count = 5
    shards: Count | None = None
    reduction: Reduction | None = None
    sharding: Sharding = "replicated"
    max_staleness: CountOrZero = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for setting, value, known in (
            ("reduction", self.reduction or "exact", get_args(Reduction)),
            ("sharding", self.sharding, get_args(Sharding)),
        ):
            if value not in known:
                raise ConfigurationError(f"{setting}={value!r}; choose from {list(known)}.")
        if self.sharding == "fsdp" and self.reduction == "exact":
            raise ConfigurationError(
                "sharding: fsdp and reduction: exact given; shards of gradients are added in the "
                "order of the network. Leave reduction out, or use sharding: replicated."
            )
        name = self.optimizer
        if not isinstance(name, str) or not (name in OPTIMIZERS or is_path(name)):
            raise ConfigurationError(
                f"optimizer={name!r}; choose from {sorted(OPTIMIZERS)}, or give a class of your "
                f"own as 'package.module:Class'.{did_you_mean(str(name), OPTIMIZERS)}"
            )

    def optimizer_options(self) -> dict[str, Any]:
        """Return the arguments of the optimizer's class, without parameters."""
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer in ADAM:
            options["betas"] = (self.adam_beta1, self.adam_beta2)
            options["eps"] = self.adam_epsilon
        return options


@dataclass(kw_only=True)
class TrainingConfiguration(UpdateSettings):
    """Hyperparameters of a `Trainer`. A subclass may add attributes of its own.

    Attributes:
        training_steps: Number of experiences.
        num_episodes_per_experience: Episodes per experience.
        seed: Seed of the episodes and of the order of batches; None is not reproducible.

    The other fields are those of `UpdateSettings`.

    Raises:
        ConfigurationError: A value is out of range; the message says what is allowed.
    """

    training_steps: CountOrZero = 1000
    num_episodes_per_experience: Count = 8
    seed: CountOrZero | None = None
