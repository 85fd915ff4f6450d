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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from astra_rl.infra.jsonio import MAX_DIGITS, check_depth, parse_json_prefix

MOST_CALLS = 64
"""Most calls that are read from one message; the others are one error."""

_TOO_LARGE: int = 10 ** (MAX_DIGITS - 1)
_TAGGED = re.compile(r"<tool_call>(?P<body>.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_CALL = re.compile(
    r"(?P<name>[^\s\[{]+)(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\])?(?P<body>\{.*)", re.S
)
_PYTHON_TAG = "<|python_tag|>"
_STRAY = " \t\r\n\"'"
"""What may follow a call or its arguments without a meaning."""
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
    """Separate the calls of tools in a message from its text; see the module for the formats.

    Several calls may follow each other, as in ``{...}; {...}`` of Llama 3, and words may follow the
    last one.
    """
    if "<tool_call>" in text:
        found = [_tagged(match["body"]) for match in _TAGGED.finditer(text)]
        each = iter(found)
        rest = _TAGGED.sub(lambda match: match[0] if _has_error(next(each)) else "", text)
        return ParsedTurn(rest.strip(), _limited([call for calls in found for call in calls]))
    if _MISTRAL in text:
        before, *bodies = text.split(_MISTRAL)
        read = [_mistral_calls(body.strip()) for body in bodies]
        calls = [call for each in read for call in each.calls]
        words = "\n".join(filter(None, [before.strip(), *(each.text.strip() for each in read)]))
        return ParsedTurn(text.strip() if _has_error(calls) else words, _limited(calls))
    body = text.strip().removeprefix(_PYTHON_TAG).strip()
    if body != text.strip() or _JSON_CALL.match(body):
        rest, calls = _calls(body)
        return ParsedTurn(text if _has_error(calls) else rest.strip(), _limited(calls))
    return ParsedTurn(text, ())


def _has_error(calls: Sequence[ToolCall]) -> bool:
    return any(call.error for call in calls)


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
            arguments = _arguments(arguments) if arguments.strip() else {}
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


def _limited(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    if len(calls) <= MOST_CALLS:
        return tuple(calls)
    error = f"{len(calls)} calls in one message; at most {MOST_CALLS} are read"
    return (*calls[:MOST_CALLS], ToolCall("", error=error))


def _arguments(text: str) -> Any:
    """Parse arguments; some models write stray quotation marks after an empty object."""
    value, rest = parse_json_prefix(text)
    if rest.strip(_STRAY):
        raise ValueError("text after the arguments")
    return value


def _calls(body: str) -> tuple[str, list[ToolCall]]:
    """Return the calls that a text begins with, at least one, and the text after them."""
    calls: list[ToolCall] = []
    rest = body
    while not calls or (rest.startswith("{") and len(calls) <= MOST_CALLS):
        try:
            value, rest = parse_json_prefix(rest)
        except ValueError as error:
            return rest, [*calls, ToolCall("", error=f"not JSON: {error}")]
        calls.append(read_call(value))
        rest = rest.lstrip(" \t\r\n;,")
    return rest, calls


def _tagged(body: str) -> list[ToolCall]:
    rest, calls = _calls(body)
    if rest.strip(_STRAY) and not _has_error(calls):
        return [ToolCall("", error="not JSON: text after the call")]
    return calls


def _mistral_calls(body: str) -> ParsedTurn:
    """Return the calls after a mark, and the text after them."""
    named = _MISTRAL_CALL.match(body)
    try:
        value, rest = parse_json_prefix(body if named is None else named["body"])
    except ValueError as error:
        name = "" if named is None else named["name"]
        return ParsedTurn("", (ToolCall(name, error=f"not JSON: {error}"),))
    if named is not None:
        return ParsedTurn(rest, (read_call({"name": named["name"], "arguments": value}),))
    calls = []
    for each in value if isinstance(value, list) else [value]:
        given = each.get("id") if isinstance(each, Mapping) else None
        calls.append(read_call(each, given if isinstance(given, str) else ""))
    return ParsedTurn(rest, tuple(calls))


def _is_finite(value: Any) -> bool:
    """Whether a JSON value of bounded depth has no NaN, infinity or too long integer."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):  # longer ones are no JSON that `parse_json` reads
        return abs(value) < _TOO_LARGE
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, list) or all(map(_is_finite, value))
