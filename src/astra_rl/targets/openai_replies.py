"""Responses of OpenAI-compatible endpoints: text, finish reason and token usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from astra_rl.core.reasoning import NO_ANSWER, OUT_OF_TOKENS, split_reply
from astra_rl.core.text import FinishReason, Utterance
from astra_rl.targets.budget import MAX_TOKENS_OF_A_CALL
from astra_rl.targets.call_errors import CallError

_FINISHES = {
    "stop": ("stop", "eos", "end_turn", "stop_sequence"),
    "length": ("length", "max_tokens", "model_length"),
    "content_filter": (
        *("content_filter", "safety", "prohibited_content", "blocklist", "sensitive", "refusal"),
        *("recitation", "spii"),
    ),
}
_FINISH_OF = {name: finish for finish, names in _FINISHES.items() for name in names}
_BROKEN_OFF = {"error": False, "network_error": False, "insufficient_system_resource": True}
"""Finish reasons of replies that the endpoint broke off; whether it is overloaded."""
_REASONING = ("reasoning_content", "reasoning", "reasoning_details")
_THINKING = ("thinking", "reasoning")
_TEXT_KEYS = ("text", "thinking", "summary", "reasoning")


def read_reply(data: Any, *, is_chat: bool, limit: str) -> Utterance:
    """Return the reply in a response, with its finish reason.

    A refusal in a field of its own is the reply. Reasoning, in a field of its own or in the text
    before the answer, is kept apart from the reply.

    Args:
        data: The parsed body.
        is_chat: Whether it is of the chat interface, not of the completions interface.
        limit: The token limit of the request and its name, for the error.

    Raises:
        CallError: There is no text to judge.
    """
    try:
        choice = data["choices"][0]
        message = choice["message"] if is_chat else choice
        content = _text(message.get("content" if is_chat else "text"))
        given = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise CallError("unparsable reply", "no choices", retryable=True) from None
    reason = given.lower().split(":")[0] if isinstance(given, str) else ""
    if reason in _BROKEN_OFF:
        is_overload = _BROKEN_OFF[reason]
        raise CallError("reply broken off", reason, retryable=True, overload=is_overload)
    finish = cast("FinishReason | None", _FINISH_OF.get(reason))
    refusal = message.get("refusal")
    text = content or (refusal if isinstance(refusal, str) and refusal else content)
    reply = split_reply(text or "")
    thoughts = [_reasoning_of(message), reply.reasoning]
    reasoning = "\n\n".join(filter(None, thoughts)) or None
    text = reply.answer if text else text
    if finish != "content_filter":
        _check_text(text, message, finish, limit, has_reasoning=reasoning is not None)
    return Utterance(text or "", finish_reason=finish, reasoning=reasoning)


def _reasoning_of(message: Mapping[str, Any]) -> str | None:
    """Return the reasoning in the fields of a message; some interfaces have it twice."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    thinking = [
        part for part in parts if isinstance(part, Mapping) and part.get("type") in _THINKING
    ]
    for given in (*(message.get(name) for name in _REASONING), thinking):
        if found := "\n\n".join(_texts(given)):
            return found
    return None


def _texts(given: Any) -> list[str]:
    """Return the texts in reasoning: a string, or parts that have it under one of their keys."""
    if isinstance(given, str):
        return [given.strip()] if given.strip() else []
    if isinstance(given, Mapping):
        return next((found for key in _TEXT_KEYS if (found := _texts(given.get(key)))), [])
    return [text for part in given for text in _texts(part)] if isinstance(given, list) else []


def _check_text(
    text: str | None,
    message: Mapping[str, Any],
    finish: FinishReason | None,
    limit: str,
    *,
    has_reasoning: bool,
) -> None:
    """Raise if there is nothing to judge; an empty text is a reply if the model chose to stop."""
    has_reasoning = has_reasoning or any(message.get(name) for name in _REASONING)
    if finish == "length" and not (text or "").strip():
        raise CallError(
            OUT_OF_TOKENS,
            f"the reply reached {limit} before any text, as when reasoning uses all of it; "
            "raise that limit",
        )
    if not text and (message.get("tool_calls") or message.get("function_call")):
        raise CallError("tool call without text", _tool_names(message))
    if not text and has_reasoning:
        raise CallError(NO_ANSWER, f"finish reason {finish}")
    if text is None:
        raise CallError("no text in the reply", f"finish reason {finish}", retryable=True)


def _text(content: Any) -> str | None:
    """Return the text of a content, a string or a list of parts; None if there is none.

    Parts of reasoning, images and other kinds are left out.
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        kind = type(content).__name__
        raise CallError("unparsable reply", f"{kind} instead of a text", retryable=True)
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping):
            raise CallError("unparsable reply", "parts of an unknown form", retryable=True)
        elif part.get("type") in ("text", "output_text", "refusal"):
            text = part.get("refusal") if part["type"] == "refusal" else part.get("text")
            texts += [text] if isinstance(text, str) else []
    return "".join(texts) if texts else None


def _tool_names(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls") or [{"function": message.get("function_call")}]
    functions = [
        each.get("function")
        for each in (calls if isinstance(calls, list) else [])
        if isinstance(each, Mapping)
    ]
    names = [str(each.get("name")) for each in functions if isinstance(each, Mapping)]
    return f"the model called {', '.join(names)}" if names else "the model called a tool"


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


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value) if value <= MAX_TOKENS_OF_A_CALL else None
        if isinstance(value, int) and not isinstance(value, bool):
            return value if 0 <= value <= MAX_TOKENS_OF_A_CALL else None
    return None
