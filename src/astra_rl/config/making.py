"""From what a configuration says of moderators and targets to objects."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from astra_rl.config.loading import load_target
from astra_rl.config.option_types import check_types
from astra_rl.config.parts import Makers
from astra_rl.config.schema import ModeratorConfig, RunConfig, SpeakerConfig, TargetConfig
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import NoReply
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.ext.transformers.secondary_target import SecondaryTarget
from astra_rl.models.generation import Sampling
from astra_rl.moderators.caching import CachedModerator
from astra_rl.moderators.fault_tolerant import FaultTolerantModerator
from astra_rl.moderators.registry import moderator_class
from astra_rl.targets.base import Target
from astra_rl.targets.registry import target_factory


def makers(config: RunConfig) -> Makers:
    """Return what makes the moderators and targets that parts of a reward ask for."""
    return Makers(
        moderator=lambda where, value: build_moderator(moderator_section(where, value), where),
        target=partial(_made_target, config),
    )


@dataclass
class StandIn:
    """Stands in a reward for what would have to be loaded or asked.

    Attributes:
        where: The place in the file of what it stands for.
        section: What the file says there.
    """

    where: str
    section: ModeratorConfig | SpeakerConfig | TargetConfig


class _NoModerator(StandIn, Moderator[str, str]):
    def moderate(self, x: Sequence[str]) -> list[float]:
        return [math.nan] * len(x)


class _NoTarget(StandIn, Target):
    def respond(self, conversations: Sequence[str]) -> list[str]:
        return [NoReply("a stand-in")] * len(conversations)


def checking_makers() -> Makers:
    """Return what checks what a file says of them; a `StandIn` loads and asks nothing."""
    return Makers(moderator=_checked_moderator, target=_checked_target)


def _checked_moderator(where: str, value: Any) -> Moderator[str, str]:
    section = moderator_section(where, value)
    check_moderator_options(section, where)
    return _NoModerator(where, section)


def _checked_target(where: str, value: Any) -> Target:
    section = target_section(where, value)
    check_target(section, where)
    return _NoTarget(where, section)


def _made_target(config: RunConfig, where: str, value: Any) -> Target:
    section = target_section(where, value)
    if isinstance(section, TargetConfig):
        return asked_target(section, where)
    return SecondaryTarget(
        section.model,
        sampling=sampling_of(section),
        chat=section.chat,
        device=config.device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
    )


def sampling_of(speaker: SpeakerConfig) -> Sampling:
    """Return how a model of a configuration speaks."""
    return Sampling(
        max_new_tokens=speaker.max_new_tokens,
        temperature=speaker.temperature,
        top_k=speaker.top_k,
        top_p=speaker.top_p,
    )


def moderator_section(where: str, value: Any) -> ModeratorConfig:
    """Return what a file says of a moderator: its name, or a section as that of a run.

    Raises:
        ConfigurationError: It is none; `where` is named.
    """
    return section_of(ModeratorConfig, where, {"type": value} if isinstance(value, str) else value)


def target_section(where: str, value: Any) -> SpeakerConfig | TargetConfig:
    """Return what a file says of a target: a model or a YAML file, or a section as that of a run.

    Raises:
        ConfigurationError: It is none; `where` is named.
    """
    if isinstance(value, str):
        return load_target(value)
    if isinstance(value, Mapping) and "type" in value:
        return section_of(TargetConfig, where, value)
    return section_of(SpeakerConfig, where, value)


SectionT = TypeVar("SectionT", bound=BaseModel)


def section_of(kind: type[SectionT], where: str, value: Any) -> SectionT:
    """Return a section of a configuration.

    Raises:
        ConfigurationError: It is none; `where` is named.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *map(str, first["loc"])])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigurationError(f"{place}: {message} (it is {first['input']!r}).") from error


def check_target(config: SpeakerConfig | TargetConfig, where: str = "target") -> None:
    """Check the options of a target that is asked; nothing is sent.

    Raises:
        ConfigurationError: An option that its class does not take, a value out of range, or a key
            that is not there; `where` is named.
    """
    if isinstance(config, TargetConfig):
        asked_target(config, where)


def build_target(config: SpeakerConfig | TargetConfig) -> str | Target:
    """Return the name of a model to load, or a target that is asked."""
    return asked_target(config) if isinstance(config, TargetConfig) else config.model


def asked_target(config: TargetConfig, where: str = "target") -> Target:
    """Make a target that is asked; nothing is sent yet.

    Raises:
        ConfigurationError: As in `check_target`.
    """
    factory = target_factory(config.type)
    check_arguments(f"{where}.options", factory, config.options)
    check_types(f"{where}.options", factory, config.options)
    try:
        return factory(**config.options)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}.options: {error}") from error
    except TypeError as error:
        raise ConfigurationError(f"{where}.options: {error}.") from error


def _completers(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a moderator's options with what answers it made of what the file says."""
    complete = options.get("complete")
    place = f"{where}.complete"
    if complete is not None and not isinstance(complete, Mapping) and not callable(complete):
        raise ConfigurationError(f"{place}: {complete!r} given; write a section as of a target.")
    if not isinstance(complete, Mapping):
        return dict(options)
    target = asked_target(section_of(TargetConfig, place, complete), place)
    if not callable(target):
        raise ConfigurationError(f"{place}: {type(target).__name__} cannot answer chats.")
    return {**options, "complete": target}


def check_moderator_options(config: ModeratorConfig, where: str = "moderator") -> None:
    """Check a moderator's options, and those of the moderators it is made of.

    Raises:
        ConfigurationError: An option that its class does not take; `where` is named.
    """
    chosen = moderator_class(config.type)
    given_otherwise = ["moderators"] if config.of else []
    check_arguments(f"{where}.options", chosen, config.options, given_otherwise)
    check_types(f"{where}.options", chosen, config.options)
    _completers(f"{where}.options", config.options)
    for index, part in enumerate(config.of):
        check_moderator_options(part, f"{where}.of.{index}")


def build_moderator(config: ModeratorConfig, where: str = "moderator") -> Moderator[str, str]:
    """Make a moderator of its name and options; equal texts are judged once, until it forgets.

    What goes wrong in it later is a missing score, see `FaultTolerantModerator`.

    Raises:
        AstraError: It cannot be made; the message says where in the configuration and why.
    """
    parts = [build_moderator(part, f"{where}.of.{index}") for index, part in enumerate(config.of)]
    moderator = construct_named(
        f"{where}.options",
        moderator_class(config.type),
        _completers(f"{where}.options", config.options),
        *([parts] if parts else []),
    )
    return CachedModerator(FaultTolerantModerator(moderator, time_limit=config.time_limit))


def check_arguments(
    where: str,
    factory: Callable[..., Any],
    options: Mapping[str, Any],
    given_otherwise: Sequence[str] = (),
) -> None:
    """Check that a factory is given what it needs, and nothing that it does not take.

    Raises:
        ConfigurationError: It is not; `where` is named.
    """
    _check_names(where, factory, options)
    for name, is_required in option_names(factory).items():
        if is_required and name not in (*options, *given_otherwise):
            raise ConfigurationError(f"{where}.{name}: missing; it must be given.")


def _check_names(where: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = option_names(factory)
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"{where}.{name}: unknown key.{did_you_mean(name, known)} "
                f"Known: {', '.join(known)}."
            )


def option_names(factory: Callable[..., Any]) -> dict[str, bool]:
    """Return what a factory may be given by name, and whether it must be.

    Where a class passes named arguments on to its base, those of the base are among them.
    """
    kinds: list[Callable[..., Any]] = [factory]
    if inspect.isclass(factory):
        kinds = [vars(kind)["__init__"] for kind in factory.__mro__ if "__init__" in vars(kind)]
    names: dict[str, bool] = {}
    for kind in kinds:
        parameters = inspect.signature(kind).parameters.values()
        for each in parameters:
            by_name = each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
            if by_name and each.name not in ("self", "problem"):
                names.setdefault(each.name, each.default is each.empty)
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    return names


def construct_named(
    where: str, factory: Callable[..., Any], options: Mapping[str, Any], *arguments: Any
) -> Any:
    """Call a factory with options of a file.

    Raises:
        ConfigurationError: An option that it does not take, or a value of another type.
    """
    _check_names(where, factory, options)
    try:
        return factory(*arguments, **options)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {error}.") from error
