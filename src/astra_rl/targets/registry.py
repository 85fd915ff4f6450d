"""Targets by name, for configuration files and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import Registry, declared_in
from astra_rl.targets.base import Target

TARGETS: Registry[Callable[..., Any]] = Registry(
    "target",
    "astra_rl.targets",
    declared_in("astra_rl.targets"),
)
"""Remote targets by name; a local model is given by `model` instead of `type`."""


def target_factory(name: str) -> Callable[..., Target]:
    """Return what constructs a target: a `Target` class, or a function wrapped as one.

    Raises:
        ConfigurationError: It cannot be imported, or is neither a class nor a function.
        MissingDependencyError: Its module needs an extra that is not installed.
    """
    found = TARGETS.load(name)
    if inspect.isclass(found) and issubclass(found, Target):
        return found
    if not callable(found):
        raise ConfigurationError(f"{name} is neither a function nor a Target class.")
    from astra_rl.targets.function import CallableTarget

    function: Any = found() if inspect.isclass(found) else found
    return partial(CallableTarget, function)


def make_target(name: str, options: Mapping[str, Any]) -> Target:
    """Construct a target from its name and options.

    Raises:
        ConfigurationError: An unknown option, or a value out of range.
    """
    try:
        return target_factory(name)(**options)
    except TypeError as error:
        raise ConfigurationError(f"{error}.") from error
