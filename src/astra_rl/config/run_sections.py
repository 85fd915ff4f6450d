"""Sections of a configuration about prompts, episodes, learning, evaluation and hardening."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from astra_rl.algorithms.registry import ALGORITHMS
from astra_rl.config.model_sections import AttackerConfig as AttackerConfig
from astra_rl.config.model_sections import LocalModelConfig as LocalModelConfig
from astra_rl.config.model_sections import LocalTargetConfig as LocalTargetConfig
from astra_rl.config.model_sections import ModeratorConfig as ModeratorConfig
from astra_rl.config.model_sections import OpponentConfig as OpponentConfig
from astra_rl.config.model_sections import PromptedAttackerConfig as PromptedAttackerConfig
from astra_rl.config.model_sections import TargetConfig as TargetConfig
from astra_rl.config.model_sections import kind_of_target as kind_of_target
from astra_rl.config.section import Section, SectionWithType
from astra_rl.config.training_section import MOST_STEPS as MOST_STEPS
from astra_rl.config.training_section import TrainingConfig as TrainingConfig
from astra_rl.methods.curriculum import CURRICULA
from astra_rl.methods.registry import ENVIRONMENTS
from astra_rl.models.settings import FineTuning


class PromptsConfig(Section):
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


class EvaluationConfig(Section):
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
    embedder: str | None = Field(
        None,
        description="Counts kinds of successful attacks by meaning, too: transformers:MODEL or "
        "sentence_transformers:MODEL, with a folder or hub id.",
    )
    embedder_similarity: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Cosine similarity of the embedder from which attacks are one kind.",
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


class HardenConfig(Section):
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
