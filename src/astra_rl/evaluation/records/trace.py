"""Record of what an agent did in one turn."""

from __future__ import annotations

import json
from typing import Annotated, Self

from pydantic import Field, model_validator

from astra_rl.core.images import Image
from astra_rl.core.messages import AgentReply, Message, Role, Trace, trace_of
from astra_rl.core.tool_calls import ToolCall
from astra_rl.evaluation.records.base import Count, Flag, Fraction, Record, Text, content_digest
from astra_rl.infra.jsonio import parse_json


class CallRecord(Record):
    """A call of a tool; see `ToolCall`.

    Attributes:
        name: Name of the tool.
        arguments: The arguments as JSON text: a model wrote them.
        id: Connects the call with its result.
        error: Why the call could not be read.
    """

    name: Text = ""
    arguments: Text = "{}"
    id: Text = ""
    error: Text = ""

    @classmethod
    def of(cls, call: ToolCall) -> CallRecord:
        """Convert a call."""
        arguments = json.dumps(call.arguments)
        return cls(name=call.name, arguments=arguments, id=call.id, error=call.error)

    def call(self) -> ToolCall:
        """Return the call; a record whose arguments are no JSON object gives one with an error."""
        try:
            arguments = parse_json(self.arguments)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            return ToolCall(self.name, id=self.id, error=self.error or "arguments are not JSON")
        return ToolCall(self.name, arguments, self.id, self.error)


class ImageRecord(Record):
    """An image; for the attributes see `Image`."""

    media_type: Text
    data: Text

    @model_validator(mode="after")
    def _is_image(self) -> Self:
        self.image()  # a ConfigurationError is a ValueError
        return self

    def image(self) -> Image:
        """Return the image."""
        return Image(self.media_type, self.data)


class MessageRecord(Record):
    """A message; for the attributes see `Message`."""

    role: Role
    text: Text = ""
    calls: tuple[CallRecord, ...] = ()
    name: Text = ""
    call_id: Text = ""
    written_by_attacker: tuple[tuple[Count, Count], ...] = ()
    images: tuple[ImageRecord, ...] = ()
    is_error: Flag = False

    @classmethod
    def of(cls, message: Message) -> MessageRecord:
        """Convert a message."""
        calls = tuple(map(CallRecord.of, message.calls))
        images = tuple(ImageRecord(**vars(image)) for image in message.images)
        given = {**vars(message), "text": str(message.text), "calls": calls, "images": images}
        return cls(**given)

    def message(self) -> Message:
        """Return the message."""
        calls = tuple(call.call() for call in self.calls)
        return Message(
            self.role,
            self.text,
            calls,
            self.name,
            self.call_id,
            self.written_by_attacker,
            tuple(image.image() for image in self.images),
            self.is_error,
        )


class TraceRecord(Record):
    """What an agent did in one turn; for the other attributes see `Trace`.

    Attributes:
        state: Digest of the state of the agent's world after the turn.
    """

    messages: tuple[MessageRecord, ...] = ()
    hijack: Fraction = None
    utility: Fraction = None
    ended: Text = ""
    failed_at: Count | None = None
    queries: Annotated[Count, Field(ge=0)] = 0
    state: Text = ""

    @classmethod
    def of(cls, response: str) -> TraceRecord | None:
        """Return the record of a response; None if it is of no agent."""
        trace = trace_of(response)
        if trace is None:
            return None
        return cls(
            messages=tuple(map(MessageRecord.of, trace.messages)),
            hijack=trace.hijack,
            utility=trace.utility,
            ended=trace.ended,
            failed_at=trace.failed_at,
            queries=trace.queries,
            state=content_digest(trace.state or {}),
        )

    @property
    def tools_at_failure(self) -> tuple[str, ...]:
        """Names of the tools that the message called which reached the attacker's goal."""
        if self.failed_at is None or self.failed_at >= len(self.messages):
            return ()
        return tuple(dict.fromkeys(call.name for call in self.messages[self.failed_at].calls))

    def reply(self, text: str) -> AgentReply:
        """Return the response, so that it can be judged again; its state is not known."""
        messages = tuple(each.message() for each in self.messages)
        return AgentReply(
            text,
            Trace(
                messages,
                None,
                self.hijack,
                self.utility,
                self.ended,
                self.failed_at,
                self.queries,
            ),
        )
