"""Parameters of classes and functions that a configuration file may give as options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_type_hints

from astra_rl.errors import ConfigurationError


def parameters_of(
    factory: Callable[..., Any], *, supplied: int = 0
) -> dict[str, inspect.Parameter]:
    """Return the parameters that a file may give, by name.

    If a class passes ``**options`` on to its base, the parameters of the base are included. A base
    without parameters cannot be passed any, so the class uses them itself and any name is accepted.

    Args:
        factory: A class or function.
        supplied: Number of leading positional arguments that the library supplies.
    """
    found: dict[str, inspect.Parameter] = {}
    hidden: set[str] = set()
    rest: inspect.Parameter | None = None
    for index, callee in enumerate(_callees(factory)):
        parameters = list(signature_of(callee).parameters.values())
        if inspect.isclass(factory):
            parameters = parameters[1:]  # self
        if index > 0 and not parameters:
            break
        positional = [
            each
            for each in parameters
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]
        hidden |= {each.name for each in positional[:supplied]}
        passes_on = any(each.kind is each.VAR_POSITIONAL for each in parameters)
        supplied = max(0, supplied - len(positional)) if passes_on else 0
        hidden |= {each.name for each in parameters if each.kind is each.POSITIONAL_ONLY}
        for each in parameters:
            by_name = each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
            if by_name and each.name not in hidden:
                found.setdefault(each.name, each)
        rest = next((each for each in parameters if each.kind is each.VAR_KEYWORD), None)
        if rest is None:
            break
    return found if rest is None else {**found, rest.name: rest}


def check_positional_only(where: str, factory: Callable[..., Any], supplied: int) -> None:
    """Raise if a parameter that only a position can fill is needed and not supplied.

    Raises:
        ConfigurationError: There is one; `where` is the place in the configuration.
    """
    callee = next(_callees(factory), factory)
    parameters = list(signature_of(callee).parameters.values())[inspect.isclass(factory) :]
    for each in parameters[supplied:]:
        if each.kind is each.POSITIONAL_ONLY and each.default is each.empty:
            raise ConfigurationError(
                f"{where}: {each.name} is a positional-only parameter, and a file gives options by "
                "name. Remove the '/' from its signature."
            )


def _callees(factory: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield the function; of a class its `__init__` and those of its bases, in MRO order."""
    if not inspect.isclass(factory):
        yield factory
        return
    for kind in factory.__mro__:
        if "__init__" in vars(kind) and kind is not object:
            yield vars(kind)["__init__"]


def signature_of(callee: Callable[..., Any]) -> inspect.Signature:
    """Return the signature; a built-in function without one takes any options."""
    try:
        return inspect.signature(callee)
    except ValueError:
        return inspect.Signature([inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)])


def annotations_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of parameters by name; a class's own before those of its bases."""
    plain = factory.func if isinstance(factory, partial) else factory
    found: dict[str, Any] = {}
    for callee in reversed(list(_callees(plain))):
        try:
            found |= get_type_hints(callee, include_extras=True)
        except (AttributeError, NameError, TypeError):  # built in, or of a TYPE_CHECKING import
            continue
    return found
