"""Configurations that ship with the library."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from astra_rl.runs.config import RunConfig, parse_config


def load_preset(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a shipped configuration, with overrides as for `load_config`."""
    file = resources.files(__name__) / f"{name}.yaml"
    return parse_config(file.read_text(encoding="utf-8"), overrides, source=f"preset {name}")
