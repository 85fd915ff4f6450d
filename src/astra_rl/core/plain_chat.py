"""Tools for models and endpoints that know none: described in words, called in text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from astra_rl.core.messages import Dialogue, Message
from astra_rl.core.tool_calls import ToolCall

TOOL_INSTRUCTIONS = (
    "You have these tools, one JSON object per line:\n{tools}\n"
    'To call one, write <tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call> and nothing '
    "after it; its result follows. When the task is done, answer in words."
)
"""System message where no tools can be sent; the format is that of Hermes and Qwen."""


def as_plain_chat(dialogue: Dialogue) -> Dialogue:
    """Return a dialogue whose tools, calls and results are texts of ordinary messages."""
    listed = "\n".join(
        json.dumps(tool.as_json()["function"], ensure_ascii=False) for tool in dialogue.tools
    )
    first, *rest = dialogue.messages
    given = [first.text] if first.role == "system" else []
    system = Message("system", "\n\n".join([*given, TOOL_INSTRUCTIONS.format(tools=listed)]))
    chat = [system]
    for message in rest if given else dialogue.messages:
        chat += _plain(message)
    return Dialogue(_joined(chat))


def _plain(message: Message) -> Iterator[Message]:
    if message.role == "assistant":
        calls = [
            f"<tool_call>{json.dumps(_named(call), ensure_ascii=False)}</tool_call>"
            for call in message.calls
            if not call.error
        ]
        yield Message("assistant", "\n".join(filter(None, [message.text, *calls])))
    elif message.role == "tool":
        told = f"<tool_response>{message.text}</tool_response>"
        yield Message("user", told, images=message.images)
    else:
        yield message


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Join neighbours of one role: many templates demand that user and assistant alternate."""
    found: list[Message] = []
    for message in messages:
        if found and found[-1].role == message.role:
            last = found[-1]
            text, images = f"{last.text}\n{message.text}", last.images + message.images
            found[-1] = Message(message.role, text, images=images)
        else:
            found.append(message)
    return found


def _named(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": dict(call.arguments)}
