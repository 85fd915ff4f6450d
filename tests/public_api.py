"""The public API as text: one line for each name, with its parameters.

``python -m tests.public_api > tests/data/public_api.txt`` records a change. CONTRIBUTING.md says
which changes need a deprecation.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

MODULES = (
    "astra_rl",
    "astra_rl.ext.transformers",
    "astra_rl.testing",
    "astra_rl.training",
    "astra_rl.training.callbacks",
    "astra_rl.training.trackers",
)
"""Modules whose exported names are public."""


def public_api() -> list[str]:
    """Return a line for each public name, sorted."""
    lines = []
    for path in MODULES:
        module = importlib.import_module(path)
        for name in _exported(module):
            lines += _lines(f"{path}.{name}", getattr(module, name))
    return sorted(lines)


def is_called_as(was: str, now: str | None) -> bool:
    """Return whether every call that fitted `was`, see `parameters`, fits `now` too."""
    if now is None:
        return False
    before, after = was.rstrip(")").split(), now.rstrip(")").split()
    by_place = [_name(each) for each in before if not each.startswith("*")]
    if by_place != [_name(each) for each in after[: len(by_place)] if not each.startswith("*")]:
        return False
    needed = {_name(each) for each in after if not each.endswith("=") and "**" not in each}
    names = {_name(each) for each in before}
    was_needed = {_name(each) for each in before if not each.endswith("=")}
    return names <= {_name(each) for each in after} and needed <= was_needed


def _name(parameter: str) -> str:
    return parameter.strip("*=")


def _exported(module: ModuleType) -> list[str]:
    """Return what a module exports, or the classes and functions that it defines."""
    found: list[str] | None = getattr(module, "__all__", None)
    if found is not None:
        return found
    return [
        name
        for name, each in vars(module).items()
        if not name.startswith("_") and getattr(each, "__module__", "") == module.__name__
    ]


def parameters(thing: Any) -> str:
    """Return a callable's parameters: ``*`` before keyword-only ones, ``=`` where optional."""
    parts = []
    for name, each in inspect.signature(thing).parameters.items():
        if name == "self":
            continue
        star: dict[Any, str] = {
            each.KEYWORD_ONLY: "*",
            each.VAR_POSITIONAL: "**",
            each.VAR_KEYWORD: "***",
        }
        default = "" if each.default is each.empty else "="
        parts.append(f"{star.get(each.kind, '')}{name}{default}")
    return " ".join(parts)


def _lines(name: str, thing: Any) -> Iterator[str]:
    if not callable(thing):
        yield name
        return
    yield f"{name}({_constructor(thing)})"
    if inspect.isclass(thing) and not issubclass(thing, BaseException):
        for method in sorted(_methods(thing)):
            yield f"{name}.{method}({parameters(getattr(thing, method))})"


def _constructor(thing: Any) -> str:
    try:
        return parameters(thing)
    except ValueError:  # an exception with the arguments of the built-in one
        return "..."


def _methods(cls: type) -> Iterator[str]:
    """Yield the public methods that this library defines."""
    ours = {
        name
        for base in cls.__mro__
        if base.__module__.startswith("astra_rl")
        for name in vars(base)
    }
    for name in ours:
        if not name.startswith("_") and inspect.isroutine(getattr(cls, name, None)):
            yield name


if __name__ == "__main__":
    print("\n".join(public_api()))
