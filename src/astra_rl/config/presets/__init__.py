"""Configurations that ship with the library."""

from __future__ import annotations

from collections.abc import Sequence

from astra_rl.config.loading import parse_config
from astra_rl.config.preset_files import preset_text
from astra_rl.config.schema import RunConfig


def load_preset(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a shipped configuration, with overrides as for `load_config`.

    Presets of published methods have no target, moderator and prompts; overrides must give them.

    Raises:
        ConfigurationError: There is no such preset, or a required setting is missing.
    """
    return parse_config(preset_text(name), overrides, source=f"preset {name}")
