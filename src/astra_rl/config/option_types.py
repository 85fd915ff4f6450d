"""Whether the options that a file gives are of the types that a class or function takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from astra_rl.errors import ConfigurationError


def check_types(where: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check each option by the annotation of its parameter, as strictly as JSON has types.

    An option without an annotation, or with one that no file can fill, is left to the factory; so
    is a value that is no JSON, which did not come from a file.

    Raises:
        ConfigurationError: An option of another type; its place is named.
    """
    hints = _annotations(factory)
    for name, value in options.items():
        if name not in hints:
            continue
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(hints[name])
            text = json.dumps(value)
        except (PydanticSchemaGenerationError, PydanticUserError, TypeError, ValueError):
            continue
        try:
            adapter.validate_json(text, strict=True)  # a list is a tuple there, "5" is no number
        except ValidationError as error:
            said = dict.fromkeys(str(each["msg"]) for each in error.errors())
            raise ConfigurationError(
                f"{where}.{name}: {'; or: '.join(said)} (it is {value!r})."
            ) from error


def _annotations(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of parameters by name; a class's own before those of its bases."""
    plain = factory.func if isinstance(factory, partial) else factory
    kinds: list[Callable[..., Any]] = [plain]
    if inspect.isclass(plain):
        kinds = [vars(kind)["__init__"] for kind in plain.__mro__ if "__init__" in vars(kind)]
    found: dict[str, Any] = {}
    for kind in reversed(kinds):
        try:
            found |= get_type_hints(kind)
        except (AttributeError, NameError, TypeError):  # built in, or imported for checkers only
            continue
    return found
