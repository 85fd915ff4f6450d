"""Calls of tools, and how models write them in text.

Three formats cover most open models: ``<tool_call>{...}</tool_call>`` (Qwen, Hermes),
``[TOOL_CALLS]`` (Mistral), and a JSON object as the whole message, possibly after
``<|python_tag|>`` (Llama 3). A call that cannot be read is a `ToolCall` with an error: what a model
wrote never raises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from astra_rl.infra.jsonio import MAX_DIGITS, check_depth, parse_json

MOST_CALLS = 64
"""Most calls that are read from one message; the others are one error."""

_TOO_LARGE: int = 10 ** (MAX_DIGITS - 1)
_TAGGED = re.compile(r"<tool_call>(?P<body>.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_CALL = re.compile(
    r"(?P<name>[^\s\[{]+)(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\])?(?P<body>\{.*)", re.S
)
_PYTHON_TAG = "<|python_tag|>"
_JSON_CALL = re.compile(r'\{\s*"(?:type"\s*:\s*"function"\s*,\s*")?name"\s*:')


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool that a model wrote.

    Attributes:
        name: Name of the tool; it may be none of the tools that there are.
        arguments: Arguments by name, as JSON values; nothing else is known of them.
        id: Connects the call with its result; empty if none was given.
        error: Why the call could not be read; empty if it could. Name and arguments may then be
            empty.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    error: str = ""

    def as_text(self) -> str:
        """Return it as lines that a reader of texts understands: the name, then each argument."""
        lines = (
            f"{name}: {each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)}"
            for name, each in self.arguments.items()
        )
        return "\n".join([self.name, *lines])

    def as_json(self) -> dict[str, Any]:
        """Return its fields as JSON values."""
        return {**vars(self), "arguments": dict(self.arguments)}


class ParsedTurn(NamedTuple):
    """A message of a model in its two parts.

    Attributes:
        text: The text without the calls that could be read.
        calls: The calls, in order; those that could not be read have an error.
    """

    text: str
    calls: tuple[ToolCall, ...]


def parse_calls(text: str) -> ParsedTurn:
    """Separate the calls of tools in a message from its text; see the module for the formats."""
    if "<tool_call>" in text:
        found = [_call(match["body"]) for match in _TAGGED.finditer(text)]
        bad = iter(found)
        rest = _TAGGED.sub(lambda match: match[0] if next(bad).error else "", text)
        return ParsedTurn(rest.strip(), _limited(found))
    if _MISTRAL in text:
        before, *bodies = text.split(_MISTRAL)
        found = [call for body in bodies for call in _mistral_calls(body.strip())]
        rest = text if any(call.error for call in found) else before
        return ParsedTurn(rest.strip(), _limited(found))
    body = text.strip().removeprefix(_PYTHON_TAG).strip()
    if body != text.strip() or _JSON_CALL.match(body):
        call = _call(body)
        return ParsedTurn(text if call.error else "", (call,))
    return ParsedTurn(text, ())


def read_call(value: Any, id: str = "") -> ToolCall:
    """Return the call that a mapping describes: ``name``, and ``arguments`` or ``parameters``.

    Arguments may be a mapping, or its JSON text as in the chat APIs.
    """
    if not isinstance(value, Mapping):
        return ToolCall("", id=id, error="a call must be a JSON object")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return ToolCall("", id=id, error="a call must have a name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}
        except ValueError as error:
            return ToolCall(name, id=id, error=f"arguments are not JSON: {error}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        return ToolCall(name, id=id, error="arguments must be a JSON object")
    try:
        check_depth(arguments)
    except ValueError as problem:
        return ToolCall(name, id=id, error=f"arguments are {problem}")
    if not _is_finite(arguments):
        return ToolCall(
            name, id=id, error="arguments have a number that is not finite, or too large"
        )
    return ToolCall(name, dict(arguments), id)


def _limited(calls: list[ToolCall]) -> tuple[ToolCall, ...]:
    if len(calls) <= MOST_CALLS:
        return tuple(calls)
    error = f"{len(calls)} calls in one message; at most {MOST_CALLS} are read"
    return (*calls[:MOST_CALLS], ToolCall("", error=error))


def _call(body: str) -> ToolCall:
    try:
        return read_call(parse_json(body.strip()))
    except ValueError as error:
        return ToolCall("", error=f"not JSON: {error}")


def _mistral_calls(body: str) -> Iterator[ToolCall]:
    named = _MISTRAL_CALL.match(body)
    if named is not None:
        try:
            arguments = parse_json(named["body"])
        except ValueError as error:
            yield ToolCall(named["name"], error=f"not JSON: {error}")
        else:
            yield read_call({"name": named["name"], "arguments": arguments})
        return
    try:
        listed = parse_json(body)
    except ValueError as error:
        yield ToolCall("", error=f"not JSON: {error}")
        return
    for each in listed if isinstance(listed, list) else [listed]:
        given = each.get("id") if isinstance(each, Mapping) else None
        yield read_call(each, given if isinstance(given, str) else "")


def _is_finite(value: Any) -> bool:
    """Whether a JSON value of bounded depth has no NaN, infinity or too long integer."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):  # longer ones are no JSON that `parse_json` reads
        return abs(value) < _TOO_LARGE
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, list) or all(map(_is_finite, value))
