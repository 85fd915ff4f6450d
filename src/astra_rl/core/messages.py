"""Typed messages of a chat with tools: roles, texts, calls of tools and their results.

They stand beside `astra_rl.core.text.Conversation`: that is the state of an episode, an alternation
of attack and response; messages are what an agent reads and writes inside one response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, get_args

from astra_rl.core.images import Image, content_of, joined_contents
from astra_rl.core.text import Conversation, FinishReason, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.errors import ConfigurationError
from astra_rl.infra.unicode import well_formed

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""

WINDOW_FULL = "context window full"
"""`Trace.ended` of a turn whose messages did not fit the model."""
_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")
_NoNames = dict[str, object]


@dataclass(frozen=True)
class Tool:
    """A tool as a model is told of it.

    Attributes:
        name: Name by which it is called.
        description: What it does.
        parameters: JSON Schema of its arguments, of type ``object``.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return it in the form of the chat APIs and of ``apply_chat_template``."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        role: Who wrote it.
        text: Its text; of a model's message, without the calls that could be read.
        calls: Calls of tools in a model's message, in order.
        name: Of a result: name of the tool.
        call_id: Of a result: `ToolCall.id` of its call; empty if the call could not be read.
        written_by_attacker: Parts of `text` that the attacker wrote.
        images: Images of the user, or in a result; they follow the text.
        is_error: Of a result: whether the call failed.
    """

    role: Role
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""
    written_by_attacker: tuple[Span, ...] = ()
    images: tuple[Image, ...] = ()
    is_error: bool = False

    @property
    def shown(self) -> str:
        """The text, with a line for each image."""
        return "\n".join(filter(None, [self.text, *(each.placeholder for each in self.images)]))

    def as_json(self) -> dict[str, Any]:
        """Return its fields as JSON values."""
        return {
            "role": self.role,
            "text": str(self.text),
            "calls": [call.as_json() for call in self.calls],
            "name": self.name,
            "call_id": self.call_id,
            "written_by_attacker": [list(span) for span in self.written_by_attacker],
            "images": [dict(vars(image)) for image in self.images],
            "is_error": self.is_error,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Message:
        """Return what `as_json` was called on."""
        return cls(
            values["role"],
            values["text"],
            tuple(ToolCall(**call) for call in values["calls"]),
            values["name"],
            values["call_id"],
            tuple((start, end) for start, end in values["written_by_attacker"]),
            tuple(Image(**image) for image in values.get("images", ())),
            values.get("is_error", False),
        )

    def marked(self, attack: str) -> Message:
        """Return it with the places marked, too, at which its text contains the attack."""
        wanted, found, start = attack.strip(), list(self.written_by_attacker), 0
        while wanted and (start := self.text.find(wanted, start)) >= 0:
            found.append((start, start + len(wanted)))
            start += len(wanted)
        return replace(self, written_by_attacker=_united(found))


def _united(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return spans in order, those that overlap as one: an attack may be a part of another."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


class Dialogue(Conversation):
    """What an agent reads before its next message: messages, and the tools that it has.

    It is a `Conversation` whose text is a transcript, so a target that only knows texts can be
    asked, too.

    Attributes:
        messages: The messages so far; the last is of the user or a result of a tool.
        tools: The tools that can be called.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]

    def __new__(cls, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Dialogue:
        """Build it from its parts.

        Raises:
            ConfigurationError: A role is unknown.
        """
        for message in messages:
            if message.role not in ROLES:
                raise ConfigurationError(f"role={message.role!r}; choose from {', '.join(ROLES)}.")
        self = super().__new__(cls, transcript(messages))
        assert isinstance(self, Dialogue)
        self.messages, self.tools = tuple(messages), tuple(tools)
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[tuple[Message, ...], tuple[Tool, ...]], _NoNames]:
        """Return the constructor arguments of a copy."""
        return (self.messages, self.tools), {}

    def as_text(self) -> Dialogue:
        """Return it with a line in place of each image."""
        messages = [replace(each, text=each.shown, images=()) for each in self.messages]
        return Dialogue(messages, self.tools)

    def as_json(self) -> dict[str, Any]:
        """Return messages and tools as JSON values."""
        return {
            "messages": [message.as_json() for message in self.messages],
            "tools": [tool.as_json()["function"] for tool in self.tools],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Dialogue:
        """Return what `as_json` was called on."""
        return cls(
            [Message.from_json(each) for each in values["messages"]],
            [Tool(**each) for each in values["tools"]],
        )


@dataclass(frozen=True)
class Trace:
    """What an agent did in one turn.

    Attributes:
        messages: Messages of this turn, from the user's to the last of the agent.
        state: State of the agent's world afterwards, as JSON values; None if it is not known.
        hijack: The highest grade of the attacker's goal, in [0, 1], that a call of this turn raised
            the state to, also if a later call undid it; 0 if no call raised it. None if unknown.
        utility: How far the user's task was done, in [0, 1]; None if unknown.
        ended: Why the turn ended: ``"answered"``, or the limit that it reached.
        failed_at: Index in `messages` of the message whose call reached the goal, if `hijack` is 1.
        queries: Number of replies of the model.
    """

    messages: tuple[Message, ...]
    state: Mapping[str, Any] | None
    hijack: float | None
    utility: float | None
    ended: str
    failed_at: int | None = None
    queries: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            **vars(self),
            "messages": [message.as_json() for message in self.messages],
            "state": None if self.state is None else dict(self.state),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trace:
        """Return what `as_json` was called on."""
        messages = tuple(Message.from_json(each) for each in values["messages"])
        return cls(**{**values, "messages": messages})


class AgentReply(Utterance):
    """Response of an agent: its last text, with all that it did before.

    Attributes:
        trace: What it did.
    """

    trace: Trace

    def __new__(cls, text: str, trace: Trace) -> AgentReply:
        """Wrap the text of an agent's last message; see the class for `trace`."""
        is_full = trace.ended == WINDOW_FULL  # the conversation cannot go on
        reason: FinishReason = "context_overflow" if is_full else "stop"
        self = super().__new__(cls, text, finish_reason=reason)
        assert isinstance(self, AgentReply)
        self.trace = trace
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[str, Trace], _NoNames]:
        """Return the constructor arguments of a copy."""
        return (str(self), self.trace), {}

    @property
    def judged(self) -> str:
        """All that the agent wrote in the turn: its messages and its calls, in order.

        A call is the name of the tool and a line for each argument. What the agent read is left
        out: it is of others, the attacker among them.
        """
        parts = [
            part
            for message in self.trace.messages
            if message.role == "assistant"
            for part in (message.text, *(each.as_text() for each in message.calls if each.name))
        ]
        return well_formed("\n\n".join(filter(None, parts))) if parts else str(self)

    @property
    def key(self) -> Hashable:
        """The text and all that the agent did before."""
        return str(self), json.dumps(self.trace.as_json(), sort_keys=True)


def trace_of(text: object) -> Trace | None:
    """Return what the agent did whose response this is; None if it is of no agent."""
    return text.trace if isinstance(text, AgentReply) else None


def transcript(messages: Sequence[Message]) -> str:
    """Return messages as one text, for readers that know no structure."""
    lines = []
    for message in messages:
        who = f"{message.role} {message.name}".strip()
        calls = "".join(
            f"\n[call {call.name} {json.dumps(call.arguments, ensure_ascii=False)}]"
            for call in message.calls
        )
        lines.append(well_formed(f"{who}: {message.shown}{calls}"))
    return "\n".join(lines)


def _results_first(messages: Sequence[Message]) -> Iterator[Message]:
    """Yield messages; in each run of results, those of calls with an id come first.

    Images in results follow the run as messages of the user: a result is a text in the chat APIs.
    """
    for _, run in groupby(messages, lambda each: each.role == "tool"):
        results = sorted(run, key=lambda each: each.role == "tool" and not each.call_id)
        for message in results:
            yield replace(message, images=()) if message.role == "tool" else message
        for message in results:
            if message.role == "tool" and message.images:
                told = f"Images in the result of {message.name}:"
                yield Message("user", told, images=message.images)


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in the form of the chat APIs.

    A call that could not be read is part of the text of its message. The answer to it has no call
    that it could be a result of, so it is a message of the user. It stands after the results of the
    other calls of that message: endpoints demand that these follow the calls directly. The content
    of a message with images is a list of parts, see `content_of`. Names of tools are those that
    endpoints accept: a model may call a tool that there is not by any name.
    """
    found: list[dict[str, Any]] = []
    for message in _results_first(messages):
        role = "user" if message.role == "tool" and not message.call_id else message.role
        content = content_of(well_formed(str(message.text)), message.images)
        chat: dict[str, Any] = {"role": role, "content": content}
        calls = [call for call in message.calls if not call.error]
        if calls:
            chat["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": _sendable(call.name),
                        "arguments": json.dumps(call.arguments),
                    },
                }
                for call in calls
            ]
        if role == "tool":
            chat |= {"tool_call_id": message.call_id, "name": _sendable(message.name)}
        if role == "user" and found and found[-1]["role"] == "user":  # templates demand turns
            found[-1]["content"] = joined_contents(found[-1]["content"], content)
        else:
            found.append(chat)
    return found


def _sendable(name: str) -> str:
    """Return a name that endpoints accept: 1 to 64 letters, digits, _ and -."""
    return (name if name.isidentifier() else _NO_NAME.sub("_", name))[:64] or "_"


def refuse_images(reader: str, conversation: str) -> None:
    """Raise if a conversation has an image, which a reader of texts would not see.

    Args:
        reader: Name of the model or target.
        conversation: What it is to read.

    Raises:
        ConfigurationError: There is one.
    """
    messages = conversation.messages if isinstance(conversation, Dialogue) else ()
    for message in messages:
        if message.images:
            where = f"result of {message.name[:64]!a}" if message.role == "tool" else "request"
            raise ConfigurationError(
                f"{reader} reads only text, and the {where} has an image "
                f"({message.images[0].placeholder}); use a target behind a chat API that reads "
                "images (type: openai), or a world without images."
            )
