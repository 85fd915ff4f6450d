"""Names of a package whose modules are imported when a name is first used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def modules_of(package: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return the module of each name.

    Args:
        package: Name of the package.
        names: Names by the module in the package that has them, separated by spaces.
    """
    return {name: f"{package}.{module}" for module, each in names.items() for name in each.split()}


def load_name(package: str, modules: Mapping[str, str], name: str) -> Any:
    """Return an object or a module of a package; the module is imported.

    Args:
        package: Name of the package, for the message.
        modules: Module of each name.
        name: The name of an object, or of one of the modules.

    Raises:
        AttributeError: The package has no such name.
    """
    if f"{package}.{name}" in modules.values():
        return importlib.import_module(f"{package}.{name}")
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(modules[name]), name)
