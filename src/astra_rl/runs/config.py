"""The configuration of a run: what a YAML file may say, checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from astra_rl.algorithms import ALGORITHMS
from astra_rl.core.redaction import learn_from, redact_settings, redacted_places
from astra_rl.datasets.scenario_files import read_scenario_file
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.methods.environments import ENVIRONMENTS
from astra_rl.moderators.registry import check_type, is_composition
from astra_rl.runs.preset_files import with_preset
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
    save_every: int = Field(
        25, ge=0, description="Steps between states to go on from; 0 saves at the end only."
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
    target: SpeakerConfig
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
    sampler: Literal["own", "transformers"] = Field(
        "own", description="What samples; 'transformers' is its generate, slower, to compare with."
    )
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = Field(False, description="Run code that comes with a model.")
    seed: int = Field(0, ge=0)

    def to_yaml(self) -> str:
        """Return the resolved configuration; loading it again gives the same.

        But for credentials, which are left out: whoever loads it is asked to give them again.
        """
        values = redact_settings(self.model_dump(mode="json"))
        text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        return text


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply overrides.

    Args:
        path: The file.
        overrides: ``"a.b=value"`` each, the value in YAML.

    Raises:
        ConfigurationError: Naming the key, what came and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the configuration {path}: {error}") from error
    return parse_config(text, overrides, source=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str) -> RunConfig:
    """Parse YAML text; see `load_config`."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{source} must hold keys and values, for instance 'seed: 0'.")
    values = with_preset(values)
    for override in overrides:
        _apply(values, override)
    places = list(redacted_places(values))
    if places:
        raise ConfigurationError(
            f"{source}: credentials stood at {', '.join(places)}, and no file keeps them. Give "
            f"each again: --set {places[0]}=..."
        )
    learn_from(values)
    values = _with_scenario(values)
    return _validated(RunConfig, values, source)


def load_moderator(reference: str) -> ModeratorConfig:
    """Read what a moderator is called: its name, or a YAML file as the section of a run's.

    Raises:
        ConfigurationError: There is no such moderator, or the file says something wrong.
    """
    if not reference.endswith((".yaml", ".yml")):
        return _validated(ModeratorConfig, {"type": reference}, "the name of a moderator")
    try:
        values = yaml.safe_load(Path(reference).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the moderator {reference}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"{reference} must hold keys and values, first of all 'type: NAME'."
        )
    learn_from(values)
    return _validated(ModeratorConfig, values.get("moderator", values), reference)


SectionT = TypeVar("SectionT", bound=BaseModel)


def _validated(section: type[SectionT], values: Any, source: str) -> SectionT:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(
            "\n".join(_explain(each, section) for each in error.errors()) + f"\n(in {source})"
        ) from error


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name.strip():
        raise ConfigurationError(f"--set {override}: write it as key.subkey=value.")
    *parents, last = name.strip().split(".")
    section = values
    for parent in parents:
        inner = section.setdefault(parent, {})
        if inner is None:
            inner = section[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigurationError(f"--set {override}: {parent} is a value, not a section.")
        section = inner
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--set {override}: the value is not valid YAML.") from error


def _with_scenario(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a run with the moderator, judge and threshold of its scenario.

    What the settings themselves say stays.

    Raises:
        ConfigurationError: There is no such scenario, or its file is wrong.
    """
    prompts = values.get("prompts")
    name = prompts.get("scenario") if isinstance(prompts, Mapping) else None
    if not isinstance(name, str):
        return dict(values)
    told = read_scenario_file(name).run_settings
    filled = {**told, **values}
    if isinstance(values.get("evaluation"), Mapping):
        filled["evaluation"] = {**told.get("evaluation", {}), **values["evaluation"]}
    return filled


def _explain(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *parents, name = error["loc"]
        known = _known_names(parents, root)
        return (
            f"{location}: unknown key.{did_you_mean(str(name), known)} Known: {', '.join(known)}."
        )
    if error["type"] == "missing":
        return f"{location}: missing; it must be given."
    message = str(error["msg"]).removeprefix("Value error, ")
    return (
        f"{location or 'configuration'}: {message} (it is {error['input']!r})."
        if not isinstance(error["input"], dict)
        else f"{location or 'configuration'}: {message}."
    )


def _known_names(parents: Iterable[Any], root: type[BaseModel]) -> list[str]:
    section: Any = root
    for parent in parents:
        if isinstance(parent, int):  # a place in a list, whose section is known already
            continue
        annotation = section.model_fields[str(parent)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(
            candidate
            for candidate in candidates
            if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        )
    return list(section.model_fields)
