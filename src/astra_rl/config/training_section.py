"""The section of a configuration about the training loop."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

from astra_rl.config.model_sections import AttackerConfig as AttackerConfig
from astra_rl.config.model_sections import LocalModelConfig as LocalModelConfig
from astra_rl.config.model_sections import LocalTargetConfig as LocalTargetConfig
from astra_rl.config.model_sections import ModeratorConfig as ModeratorConfig
from astra_rl.config.model_sections import OpponentConfig as OpponentConfig
from astra_rl.config.model_sections import PromptedAttackerConfig as PromptedAttackerConfig
from astra_rl.config.model_sections import TargetConfig as TargetConfig
from astra_rl.config.model_sections import kind_of_target as kind_of_target
from astra_rl.errors import ConfigurationError
from astra_rl.infra.ranges import Count, CountOrZero, Positive, Range
from astra_rl.training.config import SchedulerType, TrainingConfiguration, UpdateSettings

MOST_STEPS = 1_000_000_000
"""Most training steps of a run; more is a typing error."""


@dataclass(kw_only=True)
class TrainingConfig(UpdateSettings):
    """The training loop: the settings of `UpdateSettings`, and those that only a run has.

    Attributes:
        steps: Number of training steps.
        episodes_per_step: Episodes played in each training step.
        batch_size: Steps (attacks or pairs) per backward pass.
        gradient_checkpointing: Recompute the attacker's layers in the backward pass: less memory,
            same gradients, more time.
        lr_scheduler_type: Schedule of transformers, over training steps; default: linear from lr to
            final_lr.
        final_lr: Learning rate at the end of linear decay; default: lr, so constant.
        warmup_steps: Steps of linear warm-up of the learning rate from zero.
        sync_ref_model: Update the reference model of the KL penalty with the attacker's weights, as
            in TRL.
        ref_model_sync_steps: Training steps between two such updates.
        ref_model_mixup_alpha: Weight of the attacker in the updated reference; 1 makes it a copy.
        save_every: Steps between saved training states; 0 saves at the end only.
        save_total_limit: Number of training states to keep, the newest.
        save_best: Also keep the attacker with the best training success, as checkpoints/best.
        load_best_model_at_end: Evaluate and keep that attacker instead of the last one, as in
            transformers.
        max_minutes: Stop training after this many minutes.
        stop_at_success: Stop at this attack success rate, averaged over recent steps.
    """

    steps: Annotated[int, Range(ge=0, le=MOST_STEPS)] = 100
    episodes_per_step: Count = 8
    batch_size: Count = 16
    gradient_checkpointing: bool = False
    lr_scheduler_type: SchedulerType | None = None
    final_lr: Positive | None = None
    warmup_steps: CountOrZero = 0
    sync_ref_model: bool = False
    ref_model_sync_steps: Count = 512
    ref_model_mixup_alpha: Annotated[float, Range(gt=0, le=1)] = 0.6
    save_every: CountOrZero = 25
    save_total_limit: Count = 2
    save_best: bool = True
    load_best_model_at_end: bool = False
    max_minutes: Positive | None = None
    stop_at_success: Annotated[float, Range(gt=0, le=1)] | None = None

    # A configuration holds it as a section.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_scheduler_type is not None and self.final_lr is not None:
            raise ConfigurationError(
                "lr_scheduler_type and final_lr exclude each other; transformers' schedules end at "
                "zero, or at lr if constant"
            )
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            raise ConfigurationError(
                "lr_scheduler_type: constant has no warm-up; use constant_with_warmup, or "
                "warmup_steps: 0"
            )

        if self.load_best_model_at_end and not self.save_best:
            raise ConfigurationError(
                "load_best_model_at_end: true needs save_best: true, which finds the best attacker."
            )
        if self.warmup_steps > self.steps > 0:
            raise ConfigurationError(
                f"warmup_steps={self.warmup_steps} and steps={self.steps}; the learning rate would "
                "never reach lr. Use fewer steps of warm-up, or more steps."
            )
        for name in (
            () if self.sync_ref_model else ("ref_model_sync_steps", "ref_model_mixup_alpha")
        ):
            if (value := getattr(self, name)) != getattr(TrainingConfig, name):
                raise ConfigurationError(
                    f"{name}={value}, but sync_ref_model is false, so the reference never changes. "
                    f"Set sync_ref_model: true, or remove {name}."
                )

    def for_trainer(self, *, seed: int) -> TrainingConfiguration:
        """Return the settings of the `Trainer` of a run with this seed."""
        shared = {each.name: getattr(self, each.name) for each in fields(UpdateSettings)}
        return TrainingConfiguration(
            **shared,
            training_steps=self.steps,
            num_episodes_per_experience=self.episodes_per_step,
            seed=seed,
        )
