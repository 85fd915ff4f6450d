"""Moderators by name, for configuration files and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_origin, get_type_hints

from astra_rl.core.moderator import Moderator
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


def moderator_factory(name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what constructs a moderator: a class, or a function.

    A function of one's own is called with the options and returns a moderator. If they leave out
    its only required parameter, and it is not annotated to return a moderator, it scores texts and
    is wrapped in a `FunctionModerator`.

    Args:
        name: A moderator's name, or ``"package.module:Name"``.
        options: The options that it is called with.

    Raises:
        ConfigurationError: It cannot be imported.
        MissingDependencyError: Its module needs an extra that is not installed.
    """
    found = MODERATORS.load(name)
    if not inspect.isfunction(found) or not _scores_texts(found, options):
        return found
    from astra_rl.moderators.function import FunctionModerator

    return partial(FunctionModerator, found)


def _scores_texts(function: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    required = [
        each.name
        for each in inspect.signature(function).parameters.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    try:
        returned = get_type_hints(function).get("return")
    except (AttributeError, NameError, TypeError):  # of a TYPE_CHECKING import
        returned = None
    kind = get_origin(returned) or returned
    makes_moderator = inspect.isclass(kind) and issubclass(kind, Moderator)
    return len(required) == 1 and required[0] not in options and not makes_moderator


COMPOSITIONS = frozenset({"inverse", "majority", "max", "mean", "min", "threshold", "weighted"})
"""Moderators that combine others, which a configuration lists under ``of``."""
