"""The keys of a scenario file and their values; see `astra_rl.datasets.scenario_files`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from astra_rl.agents.assignment import Limits, assignments
from astra_rl.datasets.benchmarks import load_benchmark
from astra_rl.datasets.files import HUB_PREFIX, LoadedRows, load_rows
from astra_rl.datasets.rows import MAX_CHARS, SPLITS, Row, Split
from astra_rl.datasets.scenario import PromptRole
from astra_rl.datasets.similarity import NEAR_DUPLICATE
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.validation import describe

SectionT = TypeVar("SectionT", bound="_Section")


class _Section(BaseModel):
    """A section of a scenario file; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_names(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(
                    f"unknown key {name!r}.{did_you_mean(str(name), cls.model_fields)} "
                    f"Known: {', '.join(cls.model_fields)}"
                )
        return values


class SourceSpec(_Section):
    """Source of rows; see `load_rows` and `load_benchmark`."""

    source: str
    benchmark: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    subset: str | None = None
    split: str | None = None
    encoding: str = "utf-8"
    separator: str | None = None
    max_chars: int = Field(MAX_CHARS, ge=1)

    def load(self, folder: str | Path = ".") -> LoadedRows:
        """Load the rows; relative paths are relative to `folder`."""
        source = self.source
        if not source.startswith(HUB_PREFIX):
            source = str(Path(folder) / source)
        if self.benchmark is None:
            return load_rows(
                source,
                columns=self.columns,
                subset=self.subset,
                split=self.split,
                encoding=self.encoding,
                separator=self.separator,
                max_chars=self.max_chars,
            )
        if self.columns or self.split or self.separator or self.encoding != "utf-8":
            raise ConfigurationError(
                f"{source}: columns, split, encoding and separator do not apply to benchmarks; "
                "remove them."
            )
        return load_benchmark(self.benchmark, source, subset=self.subset, max_chars=self.max_chars)


class SplitSpec(_Section):
    """Options of splitting; see `assign_splits`."""

    shares: dict[Split, float] | None = None
    seed: int = Field(0, ge=0)
    similarity: float = Field(NEAR_DUPLICATE, gt=0, le=1)


class AgentSpec(_Section):
    """An agent as the target: each task of a world with each goal, in each slot.

    Attributes:
        world: Name of a world, or one's own as ``package.module:Name``.
        slots: Where the attacker's text stands; empty is the first slot of the world.
        limits: Limits of a turn, see `Limits`.
        history: Number of turns that the attacker reads at least; 0 is all.
        rollback: Whether the attacker can take a turn back.
    """

    world: str
    slots: tuple[str, ...] = ()
    limits: dict[str, float] = Field(default_factory=dict)
    history: int = Field(0, ge=0)
    rollback: bool = False

    def rows(self) -> dict[Split, list[Row]]:
        """Return the rows of each split; their category is the slot.

        Raises:
            ConfigurationError: World, slot or limit does not exist.
        """
        whole = {name: int(n) if n == int(n) else n for name, n in self.limits.items()}
        limits = Limits.of(whole)
        return {
            split: [
                Row(
                    f"{each.task}-{each.goal}-{each.slot}",
                    each.goal_text(),
                    category=each.slot,
                    brief=each.brief(),
                    facts=each.facts(),
                )
                for each in found
            ]
            for split in SPLITS
            if (
                found := assignments(
                    self.world,
                    split,
                    self.slots,
                    limits,
                    history=self.history,
                    rollback=self.rollback,
                )
            )
        }


class ScenarioFile(_Section):
    """Contents of a scenario file: attributes of `Scenario`, and the source of its rows.

    `prompts` is a file name, a `SourceSpec`, a list of texts and rows, or a mapping from splits to
    these. `agent` stands in place of `prompts` if the target is an agent with tools.
    """

    prompts: Any = None
    agent: AgentSpec | None = None
    name: str | None = None
    description: str = ""
    harm_category: str | None = None
    system: tuple[str, ...] = ()
    brief: str | None = None
    prompt_role: PromptRole | None = None
    splits: SplitSpec = SplitSpec()
    moderator: dict[str, Any] | None = None
    judge: dict[str, Any] | None = None
    threshold: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_source(self) -> ScenarioFile:
        if "prompts" not in self.model_fields_set and self.agent is None:
            raise ValueError("prompts: missing; it must be given, or agent: {world: ...}")
        if self.prompts is not None and self.agent is not None:
            raise ValueError("prompts and agent given; give one of them")
        return self

    @field_validator("system", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("moderator", "judge", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("moderator", "judge")
    @classmethod
    def _by_name(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and not isinstance(value.get("type"), str):
            raise ValueError("give its name as type, for example {type: secret_leak}")
        return value

    @property
    def run_settings(self) -> dict[str, Any]:
        """Settings of a run that the scenario implies, as sections of a run configuration."""
        evaluation = {"judge": self.judge, "threshold": self.threshold}
        given = {key: value for key, value in evaluation.items() if value is not None}
        return {
            **({} if self.moderator is None else {"moderator": self.moderator}),
            **({"evaluation": given} if given else {}),
        }


def validated(section: type[SectionT], values: object, source: str) -> SectionT:
    """Return a section with these values.

    Args:
        section: Its class.
        values: What the file has.
        source: Name of the file, and of the place in it, for errors.

    Raises:
        ConfigurationError: A key is missing or unknown, or a value is out of range.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = [_explain(each, section) for each in error.errors()]
        raise ConfigurationError("\n".join([*lines, f"(in {source})"])) from error


def _explain(error: Mapping[str, Any], section: type[BaseModel]) -> str:
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{place}: missing; it must be given."
    if error["type"] != "extra_forbidden":
        return describe(place, error["input"], [error])
    known = list(section.model_fields) if len(error["loc"]) == 1 else []
    listed = f" Known: {', '.join(known)}." if known else ""
    return f"{place}: unknown key.{did_you_mean(str(error['loc'][-1]), known)}{listed}"
