"""Worlds by the names that a scenario may give."""

from __future__ import annotations

from functools import lru_cache

from astra_rl.agents.world import World
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import Registry, declared_in

WORLDS: Registry[type[World]] = Registry(
    "world", "astra_rl.worlds", declared_in("astra_rl.agents.worlds")
)
"""Worlds by name."""


@lru_cache(maxsize=64)
def load_world(name: str) -> World:
    """Return a world by its name, or one's own as ``package.module:Name``.

    Raises:
        ConfigurationError: It is unknown, cannot be imported, or is no `World`.
    """
    kind = WORLDS.load(name)
    if not (isinstance(kind, type) and issubclass(kind, World)):
        raise ConfigurationError(f"{name} is no World; subclass astra_rl.agents.World.")
    return kind()
