"""Schema of a run configuration: keys of the YAML file, their types, defaults and ranges."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from astra_rl.algorithms.registry import ALGORITHMS
from astra_rl.config.rollout import RolloutConfig
from astra_rl.core.extraction import Extraction
from astra_rl.datasets.yaml_text import dump_yaml
from astra_rl.errors import ConfigurationError
from astra_rl.infra.ranges import Count, CountOrZero, Positive, Range
from astra_rl.infra.redaction import redact_settings
from astra_rl.infra.registry import Registry
from astra_rl.methods.curriculum import CURRICULA
from astra_rl.methods.registry import ENVIRONMENTS
from astra_rl.models.settings import (
    AttentionImplementation,
    FineTuning,
    LoraOptions,
    Sampling,
)
from astra_rl.moderators.registry import MODERATORS, is_composition, moderator_factory
from astra_rl.targets.budget import Budget
from astra_rl.targets.registry import TARGETS, target_factory
from astra_rl.training.config import SchedulerType, TrainingConfiguration, UpdateSettings
from astra_rl.training.trackers import ReportTo


class _Section(BaseModel):
    """A section of the configuration; unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class SectionWithType(_Section):
    """A section that names a class or function, and the arguments to call it with.

    Attributes:
        registry: What `type` may name, besides import paths.
        own_keys: Arguments that are keys of the section itself, beside `options`; null leaves one
            out.
    """

    registry: ClassVar[Registry[Any]]
    own_keys: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # each section declares them, in its own order
        type: str
        options: dict[str, Any]

    @field_validator("type", check_fields=False)
    @classmethod
    def _known_type(cls, value: str) -> str:
        cls.registry.check(value)
        return value

    def factory(self) -> Callable[..., Any]:
        """Return the class or function to call; its module is imported.

        Raises:
            ConfigurationError: It cannot be imported.
            MissingDependencyError: Its module needs an extra that is not installed.
        """
        return self.registry.load(self.type)  # type: ignore[no-any-return]

    def arguments_in_section(self) -> dict[str, Any]:
        """Return the arguments that are keys of the section itself, where given."""
        given = {name: getattr(self, name) for name in self.own_keys}
        return {name: value for name, value in given.items() if value is not None}


class LocalModelConfig(_Section):
    """A local language model and how it samples; see `astra_rl.models.generation.Sampling`."""

    model: str = Field(description="Hub id, folder, or bundled:NAME.")
    chat: bool | None = Field(
        None, description="Apply the chat template; default: if the tokenizer has one."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Further variables of the chat template, for instance enable_thinking: false.",
    )
    max_new_tokens: int = Field(
        Sampling.max_new_tokens, description="Maximum number of generated tokens per turn."
    )
    temperature: float = Field(
        Sampling.temperature, description="Sampling temperature; 0 is greedy decoding."
    )
    top_k: int = Field(
        Sampling.top_k, description="Sample from the k most likely tokens; 0 disables it."
    )
    top_p: float = Field(
        Sampling.top_p,
        description="Nucleus sampling: probability mass of the tokens; 1 disables it.",
    )

    @model_validator(mode="after")
    def _sampling_in_range(self) -> LocalModelConfig:
        self.sampling()
        return self

    def sampling(self) -> Sampling:
        """Return the sampling parameters of the model."""
        return Sampling(**{each.name: getattr(self, each.name) for each in fields(Sampling)})

    @property
    def name(self) -> str:
        """Name of the model in records."""
        return self.model


class OpponentConfig(_Section):
    """A local model that training attacks in some of its steps."""

    model: str = Field(description="Hub id, folder, or bundled:NAME.")
    weight: float = Field(1.0, gt=0, description="How often it is drawn, relative to the others.")


class LocalTargetConfig(LocalModelConfig):
    """A local target. It samples in the same way when an opponent takes its place."""

    opponents: tuple[OpponentConfig, ...] = Field(
        (),
        description="Models that training attacks instead, one drawn per training step; adapters "
        "of one model share its weights. Evaluations attack 'model'.",
    )


class TargetConfig(SectionWithType):
    """A remote target by type and options; also the endpoint of an LLM judge."""

    registry: ClassVar = TARGETS

    type: str = Field(description="openai, http, or 'package.module:name'.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of its class.")

    def factory(self) -> Callable[..., Any]:
        """Return what constructs the target, see `target_factory`."""
        return target_factory(self.type)

    @property
    def name(self) -> str:
        """Name of the target in records."""
        names = (self.options.get(key) for key in ("name", "model", "url"))
        return next((str(each) for each in names if each), self.type)


def kind_of_target(value: Any) -> str:
    """Return the kind of a target section: "remote" if it has a `type`, else "local"."""
    has_type = isinstance(value, TargetConfig) or (isinstance(value, Mapping) and "type" in value)
    return "remote" if has_type else "local"


class AttackerConfig(LocalModelConfig):
    """The model that is trained."""

    stop_at_newline: bool = Field(False, description="End an attack at its first line break.")
    extract: Extraction | None = Field(
        None,
        description="Send only a part of the output: tag, the text in that tag, or pattern, the "
        "first group of a regular expression; default: all of it.",
    )
    lora: LoraOptions | None = Field(
        None, description="Train a LoRA adapter; default: train the weights."
    )
    trainable_layers: int | None = Field(
        None, ge=1, description="Train only this many last layers; default: all parameters."
    )

    @model_validator(mode="after")
    def _lora_or_layers(self) -> AttackerConfig:
        if self.lora is not None and self.trainable_layers is not None:
            raise ValueError("lora and trainable_layers exclude each other; give one")
        return self


class PromptedAttackerConfig(TargetConfig):
    """An attacker that is prompted and not trained: an endpoint or an application."""

    extract: Extraction | None = Field(
        None, description="Send only a part of the output; see that of a local attacker."
    )


class ModeratorConfig(SectionWithType):
    """A moderator by type and options; a composition lists the moderators it combines."""

    registry: ClassVar = MODERATORS

    type: str = Field(description="A moderator's name, or 'package.module:name'.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of its class.")
    of: tuple[ModeratorConfig, ...] = Field(
        (), description="The moderators that a composition combines."
    )
    reasoning: bool = Field(
        False,
        description="Also judge the reasoning of the target, before its answer; default: the "
        "answer only.",
    )
    time_limit: float | None = Field(
        1800.0, gt=0, description="Timeout of a call in seconds; its scores are then missing."
    )

    def factory(self) -> Callable[..., Any]:
        """Return what constructs the moderator, see `moderator_factory`."""
        return moderator_factory(self.type, self.options)

    @model_validator(mode="after")
    def _parts_match_type(self) -> ModeratorConfig:
        if is_composition(self.type) and not self.of:
            raise ValueError(f"{self.type} combines other moderators; list them under 'of'")
        if self.of and not is_composition(self.type):
            raise ValueError(f"{self.type} does not combine other moderators; leave out 'of'")
        return self


class PromptsConfig(_Section):
    """Opening contexts of conversations: a scenario, or a file of prompts."""

    scenario: str | None = Field(
        None, description="A name that 'astra-rl info scenarios' lists, or a scenario file."
    )
    file: str | None = Field(
        None, description="txt, csv, tsv, jsonl, json, parquet, a folder of datasets, or hub:ID."
    )
    test_file: str | None = Field(
        None, description="Prompts of the evaluation; default: 'file' is split without overlap."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Names of the columns in the files, by field, where they differ.",
    )
    separator: str | None = Field(
        None, description="Separator of the cells of a csv file; default: that of its first line."
    )
    benchmark: str | None = Field(
        None, description="Benchmark whose column names the file has, e.g. harmbench."
    )
    role: Literal["opening", "goal"] | None = Field(
        None,
        description="opening: both sides read the prompt before the first attack; goal: the "
        "attacker reads it in its brief. Default: goal for a benchmark, opening for another file.",
    )
    train: int | None = Field(
        None, ge=1, description="Maximum number of training prompts; default: all."
    )
    test: int | None = Field(
        None, ge=1, description="Maximum number of evaluation prompts; default: all."
    )

    @field_validator("train", "test", mode="before")
    @classmethod
    def _no_texts(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError(
                f"{value!r} given; it must be a whole number of prompts. To give the prompts "
                "themselves, write them in a file, one a line, and give it as prompts.file"
            )
        return value

    @model_validator(mode="after")
    def _one_source(self) -> PromptsConfig:
        if (self.scenario is None) == (self.file is None):
            raise ValueError("give either scenario or file")
        of_files = (self.test_file, self.columns, self.separator, self.benchmark, self.role)
        if self.file is None and any(of_files):
            raise ValueError("test_file, columns, separator, benchmark and role need file")
        return self


class CurriculumConfig(SectionWithType):
    """Which prompts training episodes open with, by type and options."""

    registry: ClassVar = CURRICULA

    type: str = Field(description=f"{', '.join(CURRICULA)}, or 'package.module:Class'.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of its class.")


class EnvironmentConfig(SectionWithType):
    """The environment, which plays episodes, by type and options."""

    registry: ClassVar = ENVIRONMENTS
    own_keys: ClassVar = ("tree_width", "tree_depth")

    type: str = Field("tree", description=f"{', '.join(ENVIRONMENTS)}, or 'package.module:Class'.")
    tree_width: int | None = Field(
        None, ge=1, description="Attacks sampled from each context; null: default of the type."
    )
    tree_depth: int | None = Field(
        None, ge=1, description="Turns (or attempts) per episode; null: default of the type."
    )
    curriculum: CurriculumConfig | None = Field(
        None, description="Draws the prompts of training; default: uniformly."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Other arguments of its class."
    )


class AlgorithmConfig(SectionWithType):
    """The training algorithm, by type and options."""

    registry: ClassVar = ALGORITHMS

    type: str = Field(
        "grpo",
        description="A name of astra_rl.algorithms.ALGORITHMS, or 'package.module:Class'.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of its class.")


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


class EvaluationConfig(_Section):
    """Evaluation of the attacker, before and after training."""

    judge: ModeratorConfig | None = Field(
        None, description="Moderator that scores evaluations; default: the training moderator."
    )
    threshold: float = Field(
        0.5, gt=0, le=1, description="Score from which an attack counts as a success."
    )
    trials: int = Field(1, ge=1, description="Conversations per held-out prompt.")
    ordinary_brief: str | None = Field(
        None,
        description="Instructions of the baseline as a model of ordinary users, for the likelihood "
        "of attacks; default: those of the attacker.",
    )
    before: bool = Field(True, description="Also evaluate the untrained attacker.")
    calibrations: str = Field(
        "calibrations", description="Folder with results of 'astra-rl calibrate'."
    )
    watch: int = Field(
        16,
        ge=0,
        description="Turns per training step that the judge also scores, to detect reward hacking.",
    )


SAFE_REPLIES = (
    "I'm sorry, but I can't share that.",
    "I can't help with that, but I'm happy to help with something else.",
    "I'm not able to tell you that.",
    "Sorry, I can't give out that information.",
)
"""Preferred replies to attacks, by default."""


class HardenConfig(_Section):
    """Hardening of the target, by ``astra-rl harden``; a run of its own ignores this section."""

    rounds: int = Field(
        1, ge=1, description="Rounds of fine-tuning the target and training a fresh attacker."
    )
    opponents: Literal["latest", "uniform", "equilibrium"] = Field(
        "latest",
        description="Targets that an attacker is trained against: the latest; or one drawn per "
        "training step from all so far, uniformly or by the equilibrium of the measured rates. The "
        "same mixture of attackers finds the failures of a target; 'latest' takes all attackers.",
    )
    failures: int = Field(
        256,
        ge=1,
        description="Maximum number of failures of each attacker that the target is trained on.",
    )
    safe_replies: tuple[str, ...] = Field(
        SAFE_REPLIES,
        min_length=1,
        description="Replies that the target learns to prefer to its failures, in turn.",
    )
    benign: str = Field(
        "benign_twins",
        description="Scenario of harmless requests: train and test rows guard and measure the "
        "target's helpfulness.",
    )
    fine_tuning: FineTuning = Field(
        FineTuning(), description="Method and hyperparameters, see astra_rl.ext.transformers."
    )


def _default_reward(earlier: Mapping[str, Any]) -> str | dict[str, Any]:
    """Return the harm and the likelihood of an attack; the harm alone where none is known."""
    if isinstance(earlier.get("attacker"), PromptedAttackerConfig):
        return "harm"
    return {"sum": [{"harm": {}}, {"attack_nll": {}, "weight": -0.1}]}


class RunConfig(_Section):
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
        description="Trackers that also get the metrics of training, one or a list: tensorboard "
        "(in the run folder), wandb (sends them over the network).",
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
    def trained(self) -> AttackerConfig:
        """The local attacker.

        Raises:
            ConfigurationError: There is none.
        """
        if self.attacker is None:
            raise ConfigurationError(
                "attacker: missing; it must be given to train or to play an attacker. Without one, "
                "'astra-rl test' sends the prompts as they are."
            )
        if isinstance(self.attacker, PromptedAttackerConfig):
            raise ConfigurationError(
                f"attacker.type: {self.attacker.type} ({self.attacker.name}) is prompted only: it "
                "has no weights here to train, and gives no probabilities. This needs a local "
                "model: attacker.model."
            )
        return self.attacker

    @property
    def trackers(self) -> tuple[ReportTo, ...]:
        """Names of the trackers in `report_to`, each once."""
        given = (self.report_to,) if isinstance(self.report_to, str) else self.report_to
        return tuple(dict.fromkeys(each for each in given if each != "none"))

    @property
    def has_local_attacker(self) -> bool:
        """Whether the attacker is a local model; without one a run only evaluates the target."""
        return isinstance(self.attacker, AttackerConfig)

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
                "environment single_turn, tree, best_of_n, attempts or few_shot; or train a local "
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
        if attacker and not isinstance(self.attacker, AttackerConfig):
            raise ValueError("rollout.attacker needs a local attacker (attacker.model)")
        if attacker and self.training.steps and self.trained.lora is None:
            raise ValueError(
                "rollout.attacker: an engine does not get base weights while they are trained. "
                "Train an adapter (attacker.lora), or use rollout.attacker: own"
            )
        if target and not isinstance(self.target, LocalTargetConfig):
            raise ValueError(
                "rollout.target needs a model (target.model); a target with a type is called at "
                "its own URL"
            )
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
        return self.model_copy(update={"budget": Budget(), "cache": True, "report_to": "none"})

    def to_yaml(self) -> str:
        """Return the configuration as YAML, without credentials; see `check_credentials`.

        Loading it gives an equal configuration if there were none.
        """
        return dump_yaml(redact_settings(self.model_dump(mode="json")))
