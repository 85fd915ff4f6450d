"""Load configurations: YAML files, command-line overrides, and errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from astra_rl.config.preset_files import with_preset
from astra_rl.config.schema import (
    LocalTargetConfig,
    ModeratorConfig,
    PromptedAttackerConfig,
    RunConfig,
    TargetConfig,
    kind_of_target,
)
from astra_rl.config.sections import keys_of, section_class, tagged_sections
from astra_rl.config.shorthands import expanded
from astra_rl.datasets.scenario_files import read_scenario_file
from astra_rl.datasets.yaml_text import has_at_most, parse_yaml
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.importing import is_path
from astra_rl.infra.redaction import learn_from, redacted_places
from astra_rl.infra.user_files import read_user_text
from astra_rl.infra.validation import describe, place_of, validate_as_json


def check_credentials(config: RunConfig) -> None:
    """Raise if credentials were removed from the configuration when it was saved.

    Raises:
        ConfigurationError: Credentials are missing; the message names their places.
    """
    places = list(redacted_places(config.model_dump()))
    if places:
        raise ConfigurationError(
            f"{', '.join(places)}: removed from the saved configuration, because it is a "
            f"credential. Give it again: --set {places[0]}=..."
        )


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, target: str | None = None
) -> RunConfig:
    """Read a YAML file and apply overrides.

    Args:
        path: The file.
        overrides: ``"a.b=value"`` each, the value in YAML.
        target: Another target: a folder or hub id of a model, or a YAML file with a target section.
            A model takes over the sampling settings of the file's target if that is local too.
            None keeps the target of the file.

    Raises:
        ConfigurationError: A value is wrong, or was removed because it is a credential; the message
            has the key, the value and what is allowed.
    """
    path = Path(path)
    try:
        text = read_user_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the configuration {path}: {error}") from error
    config = parse_config(text, overrides, source=str(path))
    if target is not None:
        config = config.model_copy(update={"target": load_target(target, like=config.target)})
    check_credentials(config)
    return config


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str) -> RunConfig:
    """Parse YAML text; see `load_config`."""
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{source} must hold keys and values, for instance 'seed: 0'.")
    values = with_preset(expanded(values))
    for override in overrides:
        _apply(values, override)
    values = expanded(values)
    learn_from(values)
    values = with_scenario(values)
    return validated(RunConfig, values, source=source)


MOST_CHARACTERS = 1_000_000
"""Largest configuration of a run that is read as data, in characters."""
MOST_VALUES = 100_000
"""Most values in it, with YAML aliases expanded."""


def load_recorded_config(path: Path) -> RunConfig:
    """Read the configuration that a run saved, as data: no file that it names is opened.

    A saved configuration contains the settings of its preset and scenario.

    Raises:
        ConfigurationError: It cannot be read, is no configuration, or is too large.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
        values = parse_yaml(text) if len(text) <= MOST_CHARACTERS else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the configuration {path}: {error}") from error
    if values is None or not has_at_most(values, MOST_VALUES):
        raise ConfigurationError(
            f"{path} is no configuration that a run saved: it is empty, or has more than "
            f"{MOST_CHARACTERS} characters or {MOST_VALUES} values."
        )
    learn_from(values)
    return validated(RunConfig, values, source=str(path))


def load_target(
    reference: str, *, like: LocalTargetConfig | TargetConfig | None = None
) -> LocalTargetConfig | TargetConfig:
    """Return the target section for a model name or a YAML file.

    Args:
        reference: Folder or hub id of a model, or a YAML file with a target section.
        like: A target whose sampling settings a model takes over, if it is local too.

    Raises:
        ConfigurationError: The file cannot be read, or has a wrong value.
    """
    if reference.endswith((".yaml", ".yml")):
        values = _read_section(reference, "target")
        if kind_of_target(values) == "remote":
            return validated(TargetConfig, values, source=reference)
        return validated(LocalTargetConfig, values, source=reference)
    if isinstance(like, LocalTargetConfig):
        return like.model_copy(update={"model": reference})
    return LocalTargetConfig(model=reference)


def load_prompted_attacker(reference: str) -> PromptedAttackerConfig | None:
    """Return the section of an attacker that is not trained; None if it is a local model.

    Args:
        reference: ``package.module:function``, a YAML file with an attacker section, or a folder or
            hub id of a model.

    Raises:
        ConfigurationError: The file cannot be read, or has a wrong value.
    """
    if is_path(reference) and not reference.startswith("bundled:"):
        return PromptedAttackerConfig(type=reference)
    if not reference.endswith((".yaml", ".yml")):
        return None
    values = _read_section(reference, "attacker")
    if kind_of_target(values) == "local":
        raise ConfigurationError(
            f"{reference}: it has no 'type', so it is no endpoint. Name a local model by its "
            "folder or hub id."
        )
    return validated(PromptedAttackerConfig, values, source=reference)


def load_moderator(reference: str) -> ModeratorConfig:
    """Return the moderator section for a registered name or a YAML file.

    Raises:
        ConfigurationError: There is no such moderator, or the file has a wrong value.
    """
    if not reference.endswith((".yaml", ".yml")):
        return validated(ModeratorConfig, {"type": reference}, where="moderator")
    return validated(ModeratorConfig, _read_section(reference, "moderator"), source=reference)


def _read_section(path: str, name: str) -> Any:
    """Read a YAML file that contains one section, at the top level or under the section's name."""
    try:
        values = parse_yaml(read_user_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the {name} {path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must hold keys and values, for instance 'type: NAME'.")
    learn_from(values)
    return values.get(name, values)


SectionT = TypeVar("SectionT", bound=BaseModel)


def validated(
    section: type[SectionT], values: Any, *, where: str = "", source: str = ""
) -> SectionT:
    """Return a section of a configuration, validated strictly: ``"5"`` is not a number.

    Args:
        section: Class of the section.
        values: The values to validate.
        where: Place of the section in the configuration; empty for the whole.
        source: File of the values, for the message.

    Raises:
        ConfigurationError: A value is wrong; the message has, for each wrong key, the value and
            what is allowed.
    """
    try:
        return _validate(section, values)
    except ValidationError as error:
        places: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for each in error.errors():
            if each["type"] == "default_factory_not_called":
                continue  # a default that depends on a section with an error of its own
            places.setdefault(place_of(each, values), []).append(each)
        lines = [_explain(place, errors, section, where) for place, errors in places.items()]
        raise ConfigurationError(
            "\n".join([*lines, *([f"(in {source})"] if source else [])])
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


def with_scenario(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a run with the moderator, judge and threshold of its scenario as defaults.

    Raises:
        ConfigurationError: There is no such scenario, or its file is wrong.
    """
    prompts = values.get("prompts")
    name = prompts.get("scenario") if isinstance(prompts, Mapping) else None
    if not isinstance(name, str):
        return dict(values)
    defaults = read_scenario_file(name).run_settings
    filled = {**defaults, **values}
    if isinstance(values.get("evaluation"), Mapping):
        filled["evaluation"] = {**defaults.get("evaluation", {}), **values["evaluation"]}
    return filled


def _validate(section: type[SectionT], values: Any) -> SectionT:
    adapter: TypeAdapter[SectionT] = TypeAdapter(section)
    try:
        checked: SectionT = validate_as_json(adapter, values)
    except ValidationError:
        raise
    except (TypeError, ValueError):  # a date, or an object that was given in Python
        checked = adapter.validate_python(values)
    return checked


def _explain(
    place: tuple[Any, ...],
    errors: Sequence[Mapping[str, Any]],
    root: type[BaseModel],
    where: str,
) -> str:
    location = ".".join(map(str, [*([where] if where else []), *place]))
    first = errors[0]
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_names(first["loc"][:-1], root)
        return (
            f"{location}: unknown key.{did_you_mean(str(place[-1]), known)} "
            f"Known: {', '.join(known)}."
        )
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        return f"{location}: missing; it must be given."
    own = first["type"] == "value_error"
    return describe(location or ("" if own else "configuration"), first["input"], errors)


def _known_names(parents: Sequence[Any], root: type[BaseModel]) -> list[str]:
    """Return the keys of the section at a place."""
    section: Any = root
    kinds: dict[str, Any] = {}
    for parent in parents:
        if parent in kinds:
            section, kinds = kinds[parent], {}
        elif not isinstance(parent, int):  # an index of a list, whose section is known already
            annotation = keys_of(section)[str(parent)].type
            section, kinds = section_class(annotation), tagged_sections(annotation)
    return list(keys_of(section))
