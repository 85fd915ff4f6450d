"""Moderators by name, for configuration files and the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from astra_rl.infra.importing import load_object as load_object
from astra_rl.infra.registry import Registry, declared_in

MODERATORS: Registry[Callable[..., Any]] = Registry(
    "moderator",
    "astra_rl.moderators",
    declared_in("astra_rl.moderators"),
)
"""Moderator classes by name; each module is imported when its class is first used."""


def is_composition(name: str) -> bool:
    """Whether the moderator of this name combines the scores of other moderators."""
    return name in COMPOSITIONS


def moderator_class(name: str) -> Callable[..., Any]:
    """Return the class of a moderator by its name, or by ``"package.module:Class"``.

    Raises:
        ConfigurationError: There is no such class.
        MissingDependencyError: Its module needs an extra that is not installed.
    """
    return MODERATORS.load(name)


COMPOSITIONS = frozenset({"inverse", "majority", "max", "mean", "min", "threshold", "weighted"})
"""Moderators that combine others, which a configuration lists under ``of``."""
