"""Schema of a run configuration: keys of the YAML file, their types, defaults and ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from astra_rl.config.model_sections import (
    AttackerConfig,
    LocalModelConfig,
    LocalTargetConfig,
    ModeratorConfig,
    OpponentConfig,
    PromptedAttackerConfig,
    TargetConfig,
    kind_of_target,
)
from astra_rl.config.rollout import RolloutConfig, VLLMConfig
from astra_rl.config.run_sections import (
    SAFE_REPLIES,
    AlgorithmConfig,
    CurriculumConfig,
    EnvironmentConfig,
    EvaluationConfig,
    HardenConfig,
    PromptsConfig,
)
from astra_rl.config.section import Section
from astra_rl.config.training_section import MOST_STEPS, TrainingConfig
from astra_rl.datasets.yaml_text import dump_yaml
from astra_rl.errors import ConfigurationError
from astra_rl.infra.redaction import redact_settings
from astra_rl.models.settings import AttentionImplementation, Loading
from astra_rl.targets.budget import Budget
from astra_rl.training.trackers import ReportTo

__all__ = [
    "MOST_STEPS",
    "SAFE_REPLIES",
    "AlgorithmConfig",
    "AttackerConfig",
    "CurriculumConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "HardenConfig",
    "LocalModelConfig",
    "LocalTargetConfig",
    "ModeratorConfig",
    "OpponentConfig",
    "PromptedAttackerConfig",
    "PromptsConfig",
    "RunConfig",
    "TargetConfig",
    "TrainingConfig",
    "kind_of_target",
]


def _default_reward(earlier: Mapping[str, Any]) -> str | dict[str, Any]:
    """Return the harm and the likelihood of an attack; the harm alone where none is known."""
    if isinstance(earlier.get("attacker"), PromptedAttackerConfig):
        return "harm"
    return {"sum": [{"harm": {}}, {"attack_nll": {}, "weight": -0.1}]}


class RunConfig(Section):
    """Configuration of a run."""

    title: str = Field("Adaptive stress test", description="Title of the report.")
    attacker: (
        Annotated[
            Annotated[AttackerConfig, Tag("local")]
            | Annotated[PromptedAttackerConfig, Tag("remote")],
            Discriminator(kind_of_target),
        ]
        | None
    ) = Field(
        None,
        description="The model that is trained, or 'type' and 'options' of an endpoint that is "
        "prompted (training.steps: 0); none only tests the target with the prompts.",
    )
    target: Annotated[
        Annotated[LocalTargetConfig, Tag("local")] | Annotated[TargetConfig, Tag("remote")],
        Discriminator(kind_of_target),
    ] = Field(description="A local model, or 'type' and 'options' of a remote target.")
    baseline: str | None = Field(
        None, description="Frozen reference model; default: the attacker's."
    )
    moderator: ModeratorConfig
    prompts: PromptsConfig
    reward: str | dict[str, Any] = Field(
        default_factory=_default_reward,
        description="A reward term, or a combination of terms; see docs/rewards.md.",
    )
    environment: EnvironmentConfig = EnvironmentConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    harden: HardenConfig = HardenConfig()
    budget: Budget = Field(
        Budget(),
        description="Limits of calls, costs and time; a run that reaches one can be resumed.",
    )
    cache: bool | str = Field(
        True,
        description="Cache replies of endpoints, so that resuming repeats no call: true: in the "
        "run folder until the run is done; a path: in that file, permanently.",
    )
    report_to: ReportTo | tuple[ReportTo, ...] = Field(
        "none",
        description="Trackers that also get the metrics of training, one or a list: mlflow, "
        "tensorboard (in the run folder), trackio, wandb (sends them over the network).",
    )
    log_completions: bool = Field(
        False,
        description="Send a table of sampled conversations of each training step to the trackers, "
        "too.",
    )
    sampler: Literal["own", "cuda_graphs", "transformers"] = Field(
        "own",
        description="Sampling engine; 'cuda_graphs': the own one, which replays decoding steps on "
        "CUDA (not measured yet); 'transformers' uses its generate(), slower, for comparison.",
    )
    rollout: RolloutConfig = Field(
        RolloutConfig(),
        description="Inference engines that sample attacks and responses instead; see "
        "docs/scaling.md.",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of local models; see docs/performance.md."
    )
    attn_implementation: AttentionImplementation = Field(
        "auto", description="Attention function of local models, by its name in transformers."
    )
    trust_remote_code: bool = Field(False, description="Run code from model repositories.")
    seed: int = Field(0, ge=0, description="Seed of all random numbers of the run.")

    @property
    def trackers(self) -> tuple[ReportTo, ...]:
        """Names of the trackers in `report_to`, each once."""
        given = (self.report_to,) if isinstance(self.report_to, str) else self.report_to
        return tuple(dict.fromkeys(each for each in given if each != "none"))

    @property
    def has_local_attacker(self) -> bool:
        """Whether the attacker is a local model; without one a run only evaluates the target."""
        return isinstance(self.attacker, AttackerConfig)

    @property
    def loading(self) -> Loading:
        """How local models are loaded."""
        return Loading(self.device, self.dtype, self.trust_remote_code, self.attn_implementation)

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ConfigurationError(
                f"device={value!r}; choose from 'auto', 'cpu', 'cuda', 'cuda:N', 'mps'."
            )
        return value

    @model_validator(mode="after")
    def _prompted_attacker_is_not_trained(self) -> RunConfig:
        attacker = self.attacker
        if not isinstance(attacker, PromptedAttackerConfig):
            return self
        if self.training.steps:
            raise ValueError(
                f"attacker.type: {attacker.type} ({attacker.name}) cannot be trained: its weights "
                "are not here. Set training.steps: 0 to attack with it as it is, with the "
                "environment tap, crescendo, goat or best_of_n, for instance; or train a local "
                "model: attacker.model"
            )
        if self.baseline is not None:
            raise ValueError(
                f"baseline: {self.baseline} given, for an attacker without probabilities "
                f"({attacker.name}); leave it out"
            )
        return self

    @model_validator(mode="after")
    def _engines_fit(self) -> RunConfig:
        attacker, target = self.rollout.attacker != "own", self.rollout.target != "own"
        if (attacker or target) and self.sampler == "transformers":
            raise ValueError("rollout needs sampler: own; it is transformers. Leave one out")
        local = self.attacker if isinstance(self.attacker, AttackerConfig) else None
        if attacker and local is None:
            raise ValueError("rollout.attacker needs a local attacker (attacker.model)")
        if target and not isinstance(self.target, LocalTargetConfig):
            raise ValueError(
                "rollout.target needs a model (target.model); a target with a type is called at "
                "its own URL"
            )
        judge = self.rollout.judge
        if isinstance(judge, VLLMConfig) and judge.vllm.get("sleep"):
            raise ValueError("rollout.judge: sleep: true; a judge does not sleep. Leave it out")
        if target and isinstance(self.target, LocalTargetConfig) and self.target.opponents:
            raise ValueError("rollout.target runs one model; leave out target.opponents")
        if target and self.environment.type == "self_play":
            raise ValueError(
                "rollout.target: self_play trains one model in both roles. Use rollout.attacker"
            )
        return self

    @model_validator(mode="after")
    def _reference_can_be_mixed(self) -> RunConfig:
        training = self.training
        lora = isinstance(self.attacker, AttackerConfig) and self.attacker.lora is not None
        if training.sync_ref_model and lora and training.ref_model_mixup_alpha < 1:
            raise ValueError(
                "sync_ref_model with attacker.lora needs training.ref_model_mixup_alpha: 1.0, "
                "because the mean of two adapters is not the mean of their weights"
            )
        return self

    def without_budget(self) -> RunConfig:
        """Return the configuration without the settings that do not change results."""
        neutral = {"budget": Budget(), "cache": True, "report_to": "none", "log_completions": False}
        return self.model_copy(update=neutral)

    def to_yaml(self) -> str:
        """Return the configuration as YAML, without credentials; see `check_credentials`.

        Loading it gives an equal configuration if there were none.
        """
        return dump_yaml(redact_settings(self.model_dump(mode="json")))
