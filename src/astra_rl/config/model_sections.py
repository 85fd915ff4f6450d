"""Sections of a configuration that name models: attacker, target and moderator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar

from pydantic import Field, model_validator

from astra_rl.config.section import Section, SectionWithType
from astra_rl.core.extraction import Extraction
from astra_rl.models.settings import LoraOptions, Sampling
from astra_rl.moderators.registry import MODERATORS, is_composition, moderator_factory
from astra_rl.targets.registry import TARGETS, target_factory


class LocalModelConfig(Section):
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


class OpponentConfig(Section):
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
