"""Prompts of agents: messages, tools and results in the chat template of a tokenizer.

The template is rendered once with a placeholder for every text that a model, a user or a tool
wrote, and split at the placeholders; so none of these texts can contain a control token. A
placeholder has a quotation mark, whose escapes show how often the template wrote it as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from astra_rl.core.messages import Dialogue, Tool, chat_messages, refuse_images
from astra_rl.core.plain_chat import as_plain_chat
from astra_rl.core.tool_calls import ParsedTurn, parse_calls, read_call
from astra_rl.errors import ConfigurationError
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.unicode import well_formed
from astra_rl.models.chat_template import ChatTemplate
from astra_rl.models.joined_texts import Part

_PAD = "\N{EM SPACE}"
_SLOT = re.compile(rf'{_PAD}?ASTRA(?P<number>\d+)(?P<escapes>\\*)"SLOT{_PAD}?')


def dialogue_parts(template: ChatTemplate, dialogue: Dialogue) -> list[Part]:
    """Return the prompt for an agent's next message.

    Args:
        template: The chat template. If it renders no tools, or rejects these calls and results,
            tools are described in the system message, and results are messages of the user.
        dialogue: The messages so far, and the tools.

    Raises:
        ConfigurationError: The template rejects ordinary messages, too, or a message has an image.
    """
    refuse_images("this model", dialogue)
    if dialogue.tools and not _renders_tools(template, dialogue):
        return _rendered(template, as_plain_chat(dialogue))
    try:
        return _rendered(template, dialogue)
    except ConfigurationError:  # for instance two calls in one message
        return _rendered(template, as_plain_chat(dialogue))


def _rendered(template: ChatTemplate, dialogue: Dialogue) -> list[Part]:
    slots = _Slots()
    messages = [slots.message(each) for each in chat_messages(dialogue.messages)]
    tools = [slots.values(tool.as_json(), _TRUSTED) for tool in dialogue.tools]
    text = template.render_chat(messages, tools or None)
    parts, end = [], 0
    for found in _SLOT.finditer(text):
        parts.append(Part(text[end : found.start()], trusted=True))
        parts.append(Part(slots.text(found)))
        end = found.end()
    parts.append(Part(text[end:], trusted=True))
    return [part for part in parts if part.text]


def read_turn(tokenizer: Any, text: str, tools: Sequence[Tool]) -> ParsedTurn:
    """Separate the calls in a model's message, with the tokenizer's response parsing if it has it.

    A message with a call that could not be read is a text as a whole.

    Args:
        tokenizer: The tokenizer.
        text: The message, with its control tokens and without its end token.
        tools: The tools that were offered.
    """
    if getattr(tokenizer, "response_template", None) is not None:
        try:
            parsed = tokenizer.parse_response(
                text, prefix="", tools=[tool.as_json() for tool in tools]
            )
            calls = [read_call(each.get("function", each)) for each in parsed.get("tool_calls", ())]
            is_read = not any(call.error for call in calls)
            return ParsedTurn(str(parsed.get("content") or "") if is_read else text, tuple(calls))
        except Exception:  # text of a model that its own parser does not expect
            return parse_calls(text)
    return parse_calls(text)


_TRUSTED = frozenset({"type", "name"})
"""Keys of a tool whose values are of its author, not of the attacker."""


class _Slots:
    """Placeholders for texts, by number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def slot(self, text: str) -> str:
        """Return a placeholder for a text."""
        self._texts.append(well_formed(text))
        return f'{_PAD}ASTRA{len(self._texts) - 1}"SLOT{_PAD}'

    def text(self, found: re.Match[str]) -> str:
        """Return the text of a placeholder as the template shows it."""
        text = self._texts[int(found["number"])]
        text = text if found[0].startswith(_PAD) else text.lstrip()
        text = text if found[0].endswith(_PAD) else text.rstrip()
        for _ in range((len(found["escapes"]) + 1).bit_length() - 1):
            text = json.dumps(text, ensure_ascii=False)[1:-1]
        return text

    def message(self, chat: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message with placeholders for its text, and names and arguments of calls."""
        given = dict(chat)
        given["content"] = self.slot(given["content"]) if given["content"] else ""
        if "tool_calls" in given:
            given["tool_calls"] = [
                {**call, "function": self.values(_parsed(call["function"]))}
                for call in given["tool_calls"]
            ]
        if "name" in given:
            given["name"] = self.slot(given["name"])
        return given

    def values(self, value: Any, trusted: frozenset[str] = frozenset()) -> Any:
        """Return a JSON value with placeholders for its texts and keys, but trusted ones."""
        if isinstance(value, str):
            return self.slot(value) if value else value
        if isinstance(value, Mapping):
            return {
                (key if trusted or key in ("name", "arguments") else self.slot(key)): (
                    each if key in trusted and isinstance(each, str) else self.values(each, trusted)
                )
                for key, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.values(each, trusted) for each in value]
        return value


def _parsed(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments as a mapping: templates write JSON themselves."""
    return {"name": function["name"], "arguments": parse_json(function["arguments"])}


def _renders_tools(template: ChatTemplate, dialogue: Dialogue) -> bool:
    """Whether the prompt for the agent's first message differs with tools."""
    roles = [message.role for message in dialogue.messages]
    first = chat_messages(dialogue.messages[: roles.index("user") + 1 if "user" in roles else 1])
    with_tools = template.render_chat(first, [tool.as_json() for tool in dialogue.tools])
    return with_tools != template.render_chat(first, None)


def check_dialogue(template: ChatTemplate | None, side: str) -> ChatTemplate:
    """Return the template of an agent.

    Raises:
        ConfigurationError: There is none.
    """
    if template is None:
        raise ConfigurationError(
            f"the {side} is an agent with tools and its tokenizer has no chat template, or "
            "chat: false is set; use an instruction-tuned model with its template."
        )
    return template
