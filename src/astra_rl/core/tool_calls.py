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
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
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
    body = text.strip().removeprefix(_PYTHON_TAG).strip()
    if body != text.strip() or _JSON_CALL.match(body):
        rest, calls = _calls(body)
        return ParsedTurn(text if _has_error(calls) else rest.strip(), _limited(calls))
    # The first mark decides: arguments may have any text in them, other marks too.
    marks = [(text.find(mark), mark) for mark in (_OPEN, _MISTRAL) if mark in text]
    if marks:
        return _tagged_turn(text) if min(marks)[1] == _OPEN else _mistral_turn(text)
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
    arguments = dict(arguments)
    try:
        check_depth(arguments)
    except ValueError as problem:
        return ToolCall(name, id=id, error=f"arguments are {problem}")
    fault = _fault(arguments)
    if fault:
        return ToolCall(name, id=id, error=f"arguments have {fault}")
    return ToolCall(name, arguments, id)


def checked_calls(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """Return calls that code made; one whose arguments are no JSON values has an error."""
    return tuple(
        call if call.error else read_call({"name": call.name, "arguments": call.arguments}, call.id)
        for call in calls
    )


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


def _tagged_turn(text: str) -> ParsedTurn:
    """Return the calls between tags, and the text without those that could be read."""
    found: list[ToolCall] = []
    words, end = [], 0
    while (start := text.find(_OPEN, end)) >= 0:
        words.append(text[end:start])
        rest, calls = _calls(text[start + len(_OPEN) :])
        # JSON is read first: an argument may have the closing tag in it.
        after, _, rest = rest.partition(_CLOSE)
        if after.strip(_STRAY) and not _has_error(calls):
            calls = [ToolCall("", error="not JSON: text after the call")]
        end = len(text) - len(rest)
        words += [text[start:end]] if _has_error(calls) else []
        found += calls
    return ParsedTurn("".join([*words, text[end:]]).strip(), _limited(found))


def _mistral_turn(text: str) -> ParsedTurn:
    """Return the calls after marks, and the text before, between and after them."""
    before, mark, rest = text.partition(_MISTRAL)
    words: list[str] = [before]
    calls: list[ToolCall] = []
    while mark:
        read = _mistral_calls(rest.strip())
        calls += read.calls
        after, mark, rest = read.text.partition(_MISTRAL)
        words.append(after)
    said = "\n".join(filter(None, map(str.strip, words)))
    return ParsedTurn(text.strip() if _has_error(calls) else said, _limited(calls))


def _mistral_calls(body: str) -> ParsedTurn:
    """Return the calls after a mark, and the text after them; all of it if they are unreadable."""
    named = _MISTRAL_CALL.match(body)
    try:
        value, rest = parse_json_prefix(body if named is None else named["body"])
    except ValueError as error:
        name = "" if named is None else named["name"]
        return ParsedTurn(body, (ToolCall(name, error=f"not JSON: {error}"),))
    if named is not None:
        return ParsedTurn(rest, (read_call({"name": named["name"], "arguments": value}),))
    calls = []
    for each in value if isinstance(value, list) else [value]:
        given = each.get("id") if isinstance(each, Mapping) else None
        calls.append(read_call(each, given if isinstance(given, str) else ""))
    return ParsedTurn(rest, tuple(calls))


def _fault(value: Any) -> str:
    """Return what makes a value of bounded depth no JSON value; empty if it is one."""
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            return "a name that is no text"
        return next(filter(None, map(_fault, value.values())), "")
    if isinstance(value, list):
        return next(filter(None, map(_fault, value)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite, or too large"
    if isinstance(value, int) and abs(value) >= _TOO_LARGE:  # no JSON that `parse_json` reads
        return "a number that is not finite, or too large"
    if value is None or isinstance(value, str | int | float):
        return ""
    return f"a value that is no JSON: {type(value).__name__}"
