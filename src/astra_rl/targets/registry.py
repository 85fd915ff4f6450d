"""The targets by name, for configuration files and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.importing import is_path, load_object
from astra_rl.targets.base import Target

TARGETS = {
    "http": "http_api:HTTPTarget",
    "openai": "openai_endpoint:OpenAITarget",
}
"""Names, and where the classes are; a class is imported when it is first asked for."""


def check_target_type(name: str) -> None:
    """Raise unless `name` is one of `TARGETS`, or ``"package.module:function"``.

    Raises:
        ConfigurationError: It is neither.
    """
    if name not in TARGETS and not is_path(name):
        known = ["local", *TARGETS]
        raise ConfigurationError(
            f"no target {name!r}.{did_you_mean(name, known)} Choose from {', '.join(known)}, or "
            "name a function or class of your own as 'package.module:name'."
        )


def target_factory(name: str) -> Callable[..., Target]:
    """Return what makes a target: a class of ours or yours, or your function as a target.

    Raises:
        ConfigurationError: There is no such thing.
        MissingDependencyError: Its module needs an extra that is not installed.
    """
    check_target_type(name)
    where = TARGETS.get(name)
    found = load_object(f"astra_rl.targets.{where}" if where else name)
    if inspect.isclass(found) and issubclass(found, Target):
        return found
    if not callable(found):
        raise ConfigurationError(f"{name} is neither a function nor a class of targets.")
    from astra_rl.targets.function import CallableTarget

    function: Any = found() if inspect.isclass(found) else found
    return partial(CallableTarget, function)


def make_target(name: str, options: Mapping[str, Any]) -> Target:
    """Make a target of its name and options.

    Raises:
        ConfigurationError: An unknown option, or a value out of range.
    """
    try:
        return target_factory(name)(**options)
    except TypeError as error:
        raise ConfigurationError(f"{error}.") from error
