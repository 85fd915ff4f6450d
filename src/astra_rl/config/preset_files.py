"""Preset files that ship with the library, and how a user's settings override them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from astra_rl.datasets.yaml_text import parse_yaml
from astra_rl.errors import ConfigurationError, did_you_mean

_FOLDER = "astra_rl.config.presets"
REPLACED_WHOLE = ("reward", "moderator", "judge")
"""Sections that are replaced as a whole, because options of two types do not mix."""
OPTIONS_OF_A_TYPE = ("algorithm", "environment", "attacker", "target")
"""Sections that are replaced whole when the user names another type; a local model has none."""


def preset_names() -> list[str]:
    """Return the names of the presets."""
    files = resources.files(_FOLDER).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """Return the file of a preset.

    Raises:
        ConfigurationError: There is no such preset.
    """
    names = preset_names()
    if name not in names:
        raise ConfigurationError(
            f"no preset {name!r}; choose from {', '.join(names)}.{did_you_mean(str(name), names)}"
        )
    return (resources.files(_FOLDER) / f"{name}.yaml").read_text(encoding="utf-8")


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings merged over those of the preset that they name under ``preset``, if any."""
    if "preset" not in values:
        return dict(values)
    own = {key: value for key, value in values.items() if key != "preset"}
    return merge(parse_yaml(preset_text(values["preset"])), own)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `above` merged over `below`: sections are merged, values replaced.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    merged = dict(below)
    for key, value in above.items():
        known: Any = merged.get(key)
        merged[key] = value
        if (
            isinstance(known, Mapping)
            and isinstance(value, Mapping)
            and _is_merged(key, known, value)
        ):
            merged[key] = merge(known, value)
    return merged


def _is_merged(key: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    """Whether a section is merged; if not, it is replaced as a whole."""
    if key in OPTIONS_OF_A_TYPE:
        return bool(above.get("type", below.get("type")) == below.get("type"))
    return key not in REPLACED_WHOLE
