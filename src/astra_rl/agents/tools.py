"""Tools of a world: Python functions, described to a model by their signature and docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from astra_rl.core.images import Image
from astra_rl.core.messages import Tool
from astra_rl.errors import ConfigurationError

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_ARGUMENT = re.compile(r"^ {4}(?P<name>\w+): (?P<text>.+(?:\n\s{8,}.+)*)", re.MULTILINE)


class ToolError(Exception):
    """A tool refuses a call; its message is the result that the agent reads."""


class ToolResult(str):
    """Text of a result, with images.

    A tool returns it instead of a text.

    Attributes:
        images: The images; the agent reads them after the text.
        is_error: Whether the call failed, for traces; a tool raises `ToolError` instead, so that
            its changes of the state are not kept.
    """

    images: tuple[Image, ...]
    is_error: bool

    def __new__(
        cls, text: str, images: Sequence[Image] = (), *, is_error: bool = False
    ) -> ToolResult:
        """Wrap a text; see the class for the arguments."""
        self = super().__new__(cls, text)
        self.images, self.is_error = tuple(images), is_error
        return self


@lru_cache(maxsize=512)
def tool_of(function: Callable[..., str]) -> Tool:
    """Describe a tool to a model.

    Args:
        function: Its first parameter is the state of the world, which it may change; the others
            are arguments of a call, annotated as str, int, float, bool, a Literal of texts, or a
            list of one of the four. It returns the text of the result, or a `ToolResult`. The
            first paragraph of its docstring is the description, a section ``Args:`` that of its
            arguments.

    Raises:
        ConfigurationError: A parameter has no annotation of these types, or there is no docstring.
    """
    text = inspect.getdoc(function) or ""
    if not text:
        raise ConfigurationError(f"the tool {function.__name__} has no docstring; describe it.")
    about, _, listed = text.partition("\nArgs:\n")
    told = {each["name"]: " ".join(each["text"].split()) for each in _ARGUMENT.finditer(listed)}
    hints = get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        schema = _schema(hints.get(name), f"the tool {function.__name__}: {name}")
        properties[name] = {**schema, **({"description": told[name]} if name in told else {})}
        if parameter.default is parameter.empty:
            required.append(name)
    return Tool(
        function.__name__,
        " ".join(about.split("\n\n")[0].split()),
        {"type": "object", "properties": properties, "required": required},
    )


def check_arguments(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call if they fit the tool.

    A whole float is accepted as an integer, and an integer as a float.

    Raises:
        ToolError: One is unknown, missing or of another type; the message is for the agent.
    """
    properties = tool.parameters["properties"]
    for name in arguments:
        if name not in properties:
            raise ToolError(f"no argument {_short(name)}; it takes {_listed(properties)}")
    for name in tool.parameters["required"]:
        if name not in arguments:
            raise ToolError(f"the argument {name} is missing; it takes {_listed(properties)}")
    return {name: _checked(name, properties[name], value) for name, value in arguments.items()}


def _schema(hint: Any, where: str) -> dict[str, Any]:
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    if get_origin(hint) is list and get_args(hint)[0] in _TYPES:
        return {"type": "array", "items": {"type": _TYPES[get_args(hint)[0]]}}
    if get_origin(hint) is Literal and all(isinstance(each, str) for each in get_args(hint)):
        return {"type": "string", "enum": list(get_args(hint))}
    raise ConfigurationError(
        f"{where} is annotated as {hint}; use str, int, float, bool, a Literal of texts, or a list "
        "of one of the four."
    )


def _checked(name: str, schema: Mapping[str, Any], value: Any) -> Any:
    kind = schema["type"]
    if kind == "array":
        if not isinstance(value, list):
            raise ToolError(f"{name} must be a list")
        return [_checked(f"{name}[{at}]", schema["items"], one) for at, one in enumerate(value)]
    if "enum" in schema and value not in schema["enum"]:
        raise ToolError(f"{name} must be one of {', '.join(schema['enum'])}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "integer" and is_number and value == int(value):
        return int(value)
    if kind == "number" and is_number:
        return value
    if (kind == "string" and isinstance(value, str)) or (
        kind == "boolean" and isinstance(value, bool)
    ):
        return value
    raise ToolError(f"{name} must be of type {kind}")


def _listed(properties: Mapping[str, Any]) -> str:
    return ", ".join(properties) or "no arguments"


def _short(text: str) -> str:
    return ascii(text[:40])
