"""Reading configurations: YAML files, changes on the command line, and errors that name the key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from astra_rl.config.preset_files import with_preset
from astra_rl.config.schema import (
    ModeratorConfig,
    RunConfig,
    SpeakerConfig,
    TargetConfig,
    kind_of_target,
)
from astra_rl.datasets.scenario_files import read_scenario_file
from astra_rl.datasets.yaml_text import parse_yaml
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.redaction import learn_from, redacted_places


def check_credentials(config: RunConfig) -> None:
    """Refuse to run what was loaded from a file that keeps no credentials.

    Raises:
        ConfigurationError: Credentials are missing; the message names their places.
    """
    places = list(redacted_places(config.model_dump()))
    if places:
        raise ConfigurationError(
            f"credentials stood at {', '.join(places)}, and the configuration of a run keeps none. "
            f"Give each again: --set {places[0]}=..."
        )


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, target: str | None = None
) -> RunConfig:
    """Read a YAML file and apply overrides.

    Args:
        path: The file.
        overrides: ``"a.b=value"`` each, the value in YAML.
        target: Another target: a folder or hub id of a model, which is called as the file's was if
            that was local; or a YAML file with the section of a target. None keeps the file's.

    Raises:
        ConfigurationError: Naming the key, what came and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the configuration {path}: {error}") from error
    config = parse_config(text, overrides, source=str(path))
    if target is None:
        return config
    return config.model_copy(update={"target": load_target(target, like=config.target)})


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str) -> RunConfig:
    """Parse YAML text; see `load_config`."""
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{source} must hold keys and values, for instance 'seed: 0'.")
    values = with_preset(values)
    for override in overrides:
        _apply(values, override)
    learn_from(values)
    values = _with_scenario(values)
    return _validated(RunConfig, values, source)


def load_target(
    reference: str, *, like: SpeakerConfig | TargetConfig | None = None
) -> SpeakerConfig | TargetConfig:
    """Read what a target is called: a folder or hub id, or a YAML file as the section of a run's.

    Args:
        reference: Which.
        like: A target whose settings a model takes over, if it is local too.

    Raises:
        ConfigurationError: The file cannot be read, or says something wrong.
    """
    if reference.endswith((".yaml", ".yml")):
        values = _read_section(reference, "target")
        if kind_of_target(values) == "asked":
            return _validated(TargetConfig, values, reference)
        return _validated(SpeakerConfig, values, reference)
    if isinstance(like, SpeakerConfig):
        return like.model_copy(update={"model": reference})
    return SpeakerConfig(model=reference)


def load_moderator(reference: str) -> ModeratorConfig:
    """Read what a moderator is called: its name, or a YAML file as the section of a run's.

    Raises:
        ConfigurationError: There is no such moderator, or the file says something wrong.
    """
    if not reference.endswith((".yaml", ".yml")):
        return _validated(ModeratorConfig, {"type": reference}, "the name of a moderator")
    return _validated(ModeratorConfig, _read_section(reference, "moderator"), reference)


def _read_section(path: str, name: str) -> Any:
    """Read a file that holds a section alone, or under its name."""
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the {name} {path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must hold keys and values, for instance 'type: NAME'.")
    learn_from(values)
    return values.get(name, values)


SectionT = TypeVar("SectionT", bound=BaseModel)
_TARGET_KINDS: dict[Any, type[BaseModel]] = {"local": SpeakerConfig, "asked": TargetConfig}


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
        section[last] = parse_yaml(value)
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
    location = ".".join(str(part) for part in error["loc"] if part not in _TARGET_KINDS)
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
        if parent in _TARGET_KINDS:
            section = _TARGET_KINDS[parent]
            continue
        annotation = section.model_fields[str(parent)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(
            (each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)),
            None,  # a choice, of which the next parent says what was chosen
        )
    return list(section.model_fields)
