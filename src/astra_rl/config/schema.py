"""The configuration of a run: what a YAML file may say, checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from astra_rl.algorithms import ALGORITHMS
from astra_rl.errors import did_you_mean
from astra_rl.infra.redaction import redact_settings
from astra_rl.methods.environments import ENVIRONMENTS
from astra_rl.moderators.registry import check_type, is_composition
from astra_rl.targets.budget import Budget
from astra_rl.targets.registry import check_target_type
from astra_rl.training.config import OPTIMIZERS


class _Section(BaseModel):
    """A part of the configuration; names that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LoraConfig(_Section):
    """A low-rank adapter instead of the weights."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class SpeakerConfig(_Section):
    """A model that takes part in conversations."""

    model: str = Field(description="Hub id, folder, or bundled:NAME.")
    chat: bool | None = Field(None, description="Use the chat template; default: if it has one.")
    max_new_tokens: int = Field(32, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)

    @property
    def name(self) -> str:
        """How it is called in records."""
        return self.model


class TargetConfig(_Section):
    """A target that is asked, not loaded, by type and its options; also a judge behind one."""

    type: str = Field(description="openai, http, or 'package.module:name' of your own.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of its class.")

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        check_target_type(value)
        return value

    @property
    def name(self) -> str:
        """How it is called in records."""
        told = (self.options.get(key) for key in ("name", "model", "url"))
        return next((str(each) for each in told if each), self.type)


def kind_of_target(value: Any) -> str:
    """Say which section a target is: one with a type is asked."""
    has_type = isinstance(value, TargetConfig) or (isinstance(value, Mapping) and "type" in value)
    return "asked" if has_type else "local"


class BudgetConfig(_Section):
    """The most that a run may spend; when it is spent, the run ends and can be continued."""

    max_requests: int | None = Field(None, ge=1, description="Sent to endpoints, retries included.")
    max_tokens: int | None = Field(None, ge=1, description="Read and written by endpoints.")
    max_cost: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="In the currency of their prices."
    )
    max_minutes: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="All sessions of the run together."
    )

    def budget(self) -> Budget:
        """Return it as the ledger takes it."""
        return Budget(**self.model_dump())


class AttackerConfig(SpeakerConfig):
    """The model that is trained."""

    stop_at_newline: bool = False
    lora: LoraConfig | None = None
    trainable_layers: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_way_to_train(self) -> AttackerConfig:
        if self.lora is not None and self.trainable_layers is not None:
            raise ValueError("lora and trainable_layers exclude each other; give one")
        return self


class ModeratorConfig(_Section):
    """A judge, by name, its options, and for a composition the moderators it is made of."""

    type: str = Field(description="Which moderator: a name, or 'package.module:Class'.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of its class.")
    of: tuple[ModeratorConfig, ...] = Field((), description="Of a composition, its moderators.")
    time_limit: float | None = Field(
        1800.0, gt=0, description="Seconds a call may take before its scores are missing."
    )

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        check_type(value)
        return value

    @model_validator(mode="after")
    def _composition_of_some(self) -> ModeratorConfig:
        if is_composition(self.type) and not self.of:
            raise ValueError(
                f"{self.type} needs the moderators it is made of, as a list under 'of'"
            )
        if self.of and not is_composition(self.type):
            raise ValueError(f"{self.type} is not made of others; leave out 'of'")
        return self


class PromptsConfig(_Section):
    """Opening contexts: a scenario, or a file of prompts."""

    scenario: str | None = Field(
        None, description="A name that 'astra-rl info scenarios' lists, or a scenario file."
    )
    file: str | None = Field(
        None, description="txt, csv, tsv, jsonl, json, parquet, a folder of datasets, or hub:ID."
    )
    test_file: str | None = Field(None, description="Default: file is divided without overlap.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Columns of the files that have other names."
    )
    benchmark: str | None = Field(None, description="Whose columns file has, e.g. harmbench.")
    train: int | None = Field(
        None, ge=1, description="Most conversations for training; default: all."
    )
    test: int | None = Field(
        None, ge=1, description="Most conversations for evaluation; default: all."
    )

    @model_validator(mode="after")
    def _one_source(self) -> PromptsConfig:
        if (self.scenario is None) == (self.file is None):
            raise ValueError("give either scenario or file")
        if self.file is None and (self.test_file or self.columns or self.benchmark):
            raise ValueError("test_file, columns and benchmark go with file")
        return self


class EnvironmentConfig(_Section):
    """How episodes are played, by name, and its options."""

    type: str = Field("tree", description=f"One of {', '.join(ENVIRONMENTS)}.")
    tree_width: int | None = Field(
        None, ge=1, description="Attacks tried from each context; null: as the type has it."
    )
    tree_depth: int | None = Field(
        None, ge=1, description="Turns or attempts; null: as the type has it."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Other arguments of its class."
    )

    @model_validator(mode="after")
    def _known_type(self) -> EnvironmentConfig:
        if self.type not in ENVIRONMENTS:
            raise ValueError(
                f"unknown type {self.type!r}.{did_you_mean(self.type, ENVIRONMENTS)} "
                f"Known: {', '.join(ENVIRONMENTS)}"
            )
        return self

    def arguments(self) -> dict[str, Any]:
        """Return what its class is given, besides problem and prompts."""
        shape = {"tree_width": self.tree_width, "tree_depth": self.tree_depth}
        return {k: v for k, v in shape.items() if v is not None} | self.options


class AlgorithmConfig(_Section):
    """How the attacker learns, by name, and its options."""

    type: str = Field("grpo", description="One of astra_rl.algorithms.ALGORITHMS.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of its class.")

    @field_validator("type")
    @classmethod
    def _known_algorithm(cls, name: str) -> str:
        if name not in ALGORITHMS:
            raise ValueError(
                f"choose from {', '.join(sorted(ALGORITHMS))}.{did_you_mean(name, ALGORITHMS)}"
            )
        return name


class TrainingConfig(_Section):
    """The optimisation loop."""

    steps: int = Field(100, ge=0)
    episodes_per_step: int = Field(8, ge=1)
    batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    lr: float = Field(1e-5, gt=0)
    final_lr: float | None = Field(None, gt=0, description="Go from lr to it in a straight line.")
    warmup_steps: int = Field(0, ge=0, description="Steps in which lr rises from zero.")
    optimizer: str = "adamw"
    max_grad_norm: float | None = Field(1.0, gt=0)
    max_nonfinite_losses: int = Field(
        3, ge=1, description="So many updates in a row that are not finite end the training."
    )
    max_unscored_steps: int = Field(
        5, ge=1, description="So many steps in a row without a single score end the training."
    )
    save_every: int = Field(
        25, ge=0, description="Steps between states to go on from; 0 saves at the end only."
    )
    save_total_limit: int = Field(2, ge=1, description="States that are kept, the newest.")
    save_best: bool = Field(
        True,
        description="Also keep the attacker of the best training success, as checkpoints/best.",
    )
    max_minutes: float | None = Field(None, gt=0, description="Stop cleanly after so long.")
    stop_at_success: float | None = Field(
        None, gt=0, le=1, description="Stop when this share of recent attacks succeeded."
    )

    @model_validator(mode="after")
    def _known_optimizer(self) -> TrainingConfig:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {sorted(OPTIMIZERS)}")
        return self


class EvaluationConfig(_Section):
    """How success is measured, before and after training."""

    judge: ModeratorConfig | None = Field(None, description="Default: the training moderator.")
    threshold: float = Field(0.5, gt=0, le=1)
    trials: int = Field(1, ge=1, description="How often each held-out prompt is tried.")
    ordinary_brief: str | None = Field(
        None,
        description="What ordinary users are told in the attacker's place, for the likelihood of "
        "attacks; default: the attacker's brief.",
    )
    before: bool = Field(True, description="Also evaluate the untrained attacker.")
    calibrations: str = Field(
        "calibrations", description="Folder in which 'astra-rl calibrate' keeps its results."
    )
    watch: int = Field(
        16,
        ge=0,
        description="Turns per training step that the judge scores too, to see reward hacking.",
    )


class RunConfig(_Section):
    """Everything that determines a run."""

    title: str = "Adaptive stress test"
    attacker: AttackerConfig
    target: Annotated[
        Annotated[SpeakerConfig, Tag("local")] | Annotated[TargetConfig, Tag("asked")],
        Discriminator(kind_of_target),
    ] = Field(description="A model as below, or 'type' and 'options' of one that is asked.")
    baseline: str | None = Field(None, description="Frozen reference; default: the attacker's.")
    moderator: ModeratorConfig
    prompts: PromptsConfig
    reward: str | dict[str, Any] = Field(
        default={"sum": [{"harm": {}}, {"attack_nll": {}, "weight": -0.1}]},
        description="A part, or a combination of parts; see docs/rewards.md.",
    )
    environment: EnvironmentConfig = EnvironmentConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    budget: BudgetConfig = BudgetConfig()
    cache: bool | str = Field(
        True,
        description="Keep what endpoints reply, so that going on asks nothing twice: in the run "
        "folder until the run is done, or in a file of yours for good.",
    )
    sampler: Literal["own", "transformers"] = Field(
        "own", description="What samples; 'transformers' is its generate, slower, to compare with."
    )
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = Field(False, description="Run code that comes with a model.")
    seed: int = Field(0, ge=0)

    def without_budget(self) -> RunConfig:
        """Return it without what does not change what is found."""
        return self.model_copy(update={"budget": BudgetConfig(), "cache": True})

    def to_yaml(self) -> str:
        """Return the resolved configuration; loading it again gives the same.

        But for credentials, which are left out: see `check_credentials`.
        """
        values = redact_settings(self.model_dump(mode="json"))
        text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        return text
