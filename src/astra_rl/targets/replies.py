"""The reply in a response of an endpoint: text, reasoning, finish reason and token usage.

The forms of OpenAI's interfaces and of those that imitate them are read, and also those of
Anthropic, Gemini, Bedrock and Ollama, which an `astra_rl.targets.HTTPTarget` may call.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from astra_rl.core.reasoning import NO_ANSWER, OUT_OF_TOKENS, split_reply
from astra_rl.core.text import FinishReason, Utterance
from astra_rl.core.tool_calls import ToolCall, read_call
from astra_rl.infra.unicode import well_formed
from astra_rl.targets.budget import MAX_TOKENS_OF_A_CALL, Usage
from astra_rl.targets.call_errors import CallError

_FINISHES = {
    "stop": ("stop", "eos", "end_turn", "stop_sequence"),
    "length": ("length", "max_tokens", "model_length", "max_output_tokens"),
    "content_filter": (
        *("content_filter", "safety", "prohibited_content", "blocklist", "sensitive", "refusal"),
        *("recitation", "spii", "content_filtered", "guardrail_intervened"),
    ),
}
_FINISH_OF = {name: finish for finish, names in _FINISHES.items() for name in names}
_TOOL_FINISHES = ("tool_calls", "tool_use", "function_call")
_BROKEN_OFF = {"error": False, "network_error": False, "insufficient_system_resource": True}
"""Finish reasons of replies that the endpoint broke off; whether it is overloaded."""
_FINISH_KEYS = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason")
_REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
_THINKING = ("thinking", "reasoning", "redacted_thinking")
_TEXT_KEYS = ("text", "thinking", "summary", "reasoning", "reasoningContent", "reasoningText")
_TOOL_TYPES = ("tool_use", "tool_call", "function_call")
_TOOL_KEYS = ("functionCall", "toolUse")


@dataclass
class _Parts:
    """What the parts of a content say.

    Attributes:
        texts: Texts of the answer, refusals included.
        thoughts: Texts of reasoning.
        tools: Names of the tools that are called.
        has_reasoning: Whether there is reasoning, possibly without a text.
    """

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    has_reasoning: bool = False

    def read(self, content: Any) -> None:
        """Add a content: a text, a part, or a list of them; images and the like are left out."""
        if isinstance(content, str):
            self.texts.append(content)
        elif isinstance(content, list):
            for part in content:
                if not isinstance(part, str | Mapping):
                    raise CallError("unparsable reply", "parts of an unknown form", retryable=True)
                self.read(part)
        elif isinstance(content, Mapping):
            self._read_part(content)
        elif content is not None:
            kind = type(content).__name__
            raise CallError("unparsable reply", f"{kind} instead of a text", retryable=True)

    def _read_part(self, part: Mapping[str, Any]) -> None:
        kind = part.get("type")
        if _is_reasoning(part):
            self.has_reasoning = True
            self.thoughts += _texts(part)
        elif kind in _TOOL_TYPES or any(key in part for key in _TOOL_KEYS):
            self.tools.append(_tool_name(part))
        elif kind == "message":
            self.read(part.get("content"))
        elif kind in (None, "text", "output_text", "refusal"):
            text = part.get("refusal" if kind == "refusal" else "text")
            self.texts += [text] if isinstance(text, str) else []


def read_reply(
    data: Any, path: Sequence[str | int], *, limit: str, with_calls: bool = False
) -> Utterance:
    """Return the reply in a response, with its finish reason.

    The content at the path is a text, a part, or a list of parts. Its message and its choice, which
    are the two innermost mappings around it, may have fields of reasoning, refusals and tool calls;
    the finish reason is the first one found around it. A refusal in a field of its own is the
    reply. Reasoning, in a field or a part of its own or in the text before the answer, is kept
    apart from the reply.

    Args:
        data: The parsed body.
        path: Keys and indices of the content.
        limit: The token limit of the request and its name, for the error.
        with_calls: Whether tools were offered, so that calls of them are a reply, too. Those that
            cannot be read are a part of the text, as they are in a text with calls.

    Raises:
        CallError: There is no text to judge, nor a call.
    """
    content, around, missing = _found_at(data, path)
    reason = _finish_reason(around)
    if reason in _BROKEN_OFF:
        is_overload = _BROKEN_OFF[reason]
        raise CallError("reply broken off", reason, retryable=True, overload=is_overload)
    finish = cast("FinishReason | None", _FINISH_OF.get(reason))
    parts = _Parts()
    # A path to the text of the first part may lead into a part that is no text.
    is_in_part = bool(around) and (_is_reasoning(around[0]) or around[0].get("type") in _TOOL_TYPES)
    parts.read(around[0] if is_in_part else content)
    text = "".join(parts.texts) if parts.texts else None
    text = text or _refusal(around) or text
    reply = split_reply(text or "")
    given = [_reasoning_of(around) or "\n\n".join(parts.thoughts), reply.reasoning]
    reasoning = "\n\n".join(filter(None, given)) or None
    text = reply.answer if text else text
    if with_calls and (calls := _read_calls(around)):
        unread = [written for call, written in calls if call.error]
        return Utterance(
            "\n".join(filter(None, [text, *unread])),
            finish_reason=finish,
            reasoning=reasoning,
            calls=[call for call, _ in calls],
        )
    if finish == "content_filter" or (text or "").strip():
        return Utterance(text or "", finish_reason=finish, reasoning=reasoning)
    if finish == "length":
        raise CallError(
            OUT_OF_TOKENS,
            f"the reply reached {limit} before any text, as when reasoning uses all of it; "
            "raise that limit",
        )
    if tools := [*parts.tools, *_called(around)] or reason in _TOOL_FINISHES:
        named = ", ".join(filter(None, tools)) if isinstance(tools, list) else ""
        raise CallError("tool call without text", f"the model called {named or 'a tool'}")
    if reasoning or parts.has_reasoning or any(_fields(around, _REASONING)):
        raise CallError(NO_ANSWER, f"finish reason {finish}" if finish else "no finish reason")
    if missing is not None:
        raise CallError("unparsable reply", f"no {missing!r}", retryable=True)
    if text is None:
        raise CallError("no text in the reply", f"finish reason {finish}", retryable=True)
    return Utterance(text, finish_reason=finish)


def _found_at(
    data: Any, path: Sequence[str | int]
) -> tuple[Any, list[Mapping[str, Any]], str | int | None]:
    """Return the value at a path, the mappings on the way, and the step that is missing.

    The innermost mapping comes first. A last step that its mapping lacks is not missing: the value
    is None.
    """
    around: list[Mapping[str, Any]] = []
    for at, step in enumerate(path):
        if isinstance(data, Mapping):
            around.insert(0, data)
        if isinstance(data, Mapping) and (step in data or at + 1 == len(path)):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None, around, step
    return data, around, None


def _finish_reason(around: Iterable[Mapping[str, Any]]) -> str:
    """Return the finish reason in lower case; "" if there is none."""
    for mapping in around:
        incomplete = mapping.get("incomplete_details")
        values = [mapping.get(key) for key in _FINISH_KEYS]
        values += [incomplete.get("reason")] if isinstance(incomplete, Mapping) else []
        for given in values:
            if isinstance(given, str) and given:
                return given.lower().split(":")[0]
    return ""


def _fields(around: Sequence[Mapping[str, Any]], names: Iterable[str]) -> Iterator[Any]:
    return (mapping.get(name) for mapping in around[:2] for name in names)


def _refusal(around: Sequence[Mapping[str, Any]]) -> str | None:
    return next((v for v in _fields(around, ["refusal"]) if isinstance(v, str) and v), None)


def _reasoning_of(around: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the reasoning in the fields of a message; some interfaces have it twice."""
    # A mapping is no reasoning: some interfaces repeat the settings of the request there.
    given = (each for each in _fields(around, _REASONING) if not isinstance(each, Mapping))
    return next(("\n\n".join(found) for each in given if (found := _texts(each))), None)


def _is_reasoning(part: Mapping[str, Any]) -> bool:
    return (
        part.get("type") in _THINKING or part.get("thought") is True or "reasoningContent" in part
    )


def _texts(given: Any) -> list[str]:
    """Return the texts in reasoning: a string, or parts that have it under one of their keys."""
    if isinstance(given, str):
        return [given.strip()] if given.strip() else []
    if isinstance(given, Mapping):
        return next((found for key in _TEXT_KEYS if (found := _texts(given.get(key)))), [])
    return [text for part in given for text in _texts(part)] if isinstance(given, list) else []


def _read_calls(around: Sequence[Mapping[str, Any]]) -> list[tuple[ToolCall, str]]:
    """Return the calls in the fields of a message of OpenAI's interface, each with its JSON."""
    found = []
    for call in _call_fields(around):
        known = call if isinstance(call, Mapping) else {}
        given = known.get("id")
        said = known.get("function", call)
        read = read_call(said, given if isinstance(given, str) else "")
        found.append((read, well_formed(json.dumps(said, ensure_ascii=False))))
    return found


def _call_fields(around: Sequence[Mapping[str, Any]]) -> list[Any]:
    # Some endpoints repeat a call in the older field; it is one call.
    given: Any = next(filter(None, _fields(around, ["tool_calls", "function_call"])), [])
    return given if isinstance(given, list) else [given]


def _called(around: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the tools in the fields of a message; "" for a tool without a name."""
    return [_tool_name(call) for call in _call_fields(around)]


def _tool_name(call: Any) -> str:
    if not isinstance(call, Mapping):
        return ""
    inner = next((found for key in ("function", *_TOOL_KEYS) if (found := call.get(key))), call)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else ""


def reported_tokens(data: Any) -> tuple[int | None, int | None]:
    """Return the input and output tokens that a response reports; None where it reports none.

    Some endpoints leave reasoning out of ``completion_tokens`` and not out of ``total_tokens``, so
    the larger number counts. Numbers that are negative, not whole, or above `MAX_TOKENS_OF_A_CALL`
    are ignored.
    """
    usage = data.get("usage") if isinstance(data, Mapping) else None
    if not isinstance(usage, Mapping):
        return None, None
    inputs = _count(usage, "prompt_tokens", "input_tokens")
    outputs = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens")
    if inputs is not None and total is not None and total >= inputs:
        outputs = max(outputs or 0, total - inputs)
    return inputs, outputs


def charged(failure: CallError, tokens: tuple[int | None, int | None]) -> CallError:
    """Return a failure with the tokens that its response reported."""
    if tokens != (None, None):
        failure.usage = Usage(tokens[0] or 0, tokens[1] or 0)
    return failure


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value) if value <= MAX_TOKENS_OF_A_CALL else None
        if isinstance(value, int) and not isinstance(value, bool):
            return value if 0 <= value <= MAX_TOKENS_OF_A_CALL else None
    return None
