"""Interface to black-box targets: conversations in, replies out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from astra_rl.core.images import text_of_content
from astra_rl.core.messages import Dialogue, chat_messages
from astra_rl.core.text import Conversation, Utterance
from astra_rl.infra.unicode import well_formed
from astra_rl.targets.budget import Prices

Message = Mapping[str, Any]
"""One message of a chat: ``role`` ("system", "user" or "assistant") and ``content``, both texts.
Those of an agent also have ``tool_calls``, the role "tool" and ``tool_call_id``; the content of one
with images is a list of parts, as in the chat APIs."""


class Target(ABC):
    """A model or an application under test.

    Attributes:
        name: Name in records and reports.
        prices: Prices of its tokens; None if they are unknown.
    """

    name: str = "target"
    prices: Prices | None = None

    @property
    def identity(self) -> str:
        """String that differs for targets that may reply differently; the name by default."""
        return self.name

    @property
    def reads_images(self) -> bool:
        """Whether a conversation of an agent may have images; by default it may not."""
        return False

    @property
    def most_output_tokens(self) -> int | None:
        """Most tokens of a reply, for estimates and budgets; None if there is no known limit."""
        return None

    @abstractmethod
    def respond(self, conversations: Sequence[str]) -> Sequence[str]:
        """Return one reply per conversation, in order; each ends in an attack.

        A reply is a text. A failed call returns a `astra_rl.core.text.NoReply` with the reason and
        does not raise. A reply that a filter withheld is an `astra_rl.core.text.Utterance` with the
        finish reason ``"content_filter"``.

        Raises:
            EndpointError: All further calls would fail too.
            BudgetSpentError: The budget is spent.
        """


def messages_of(conversation: str) -> list[Message]:
    """Return a conversation as chat messages, as the target sees it.

    The opening prompt is part of the first message of the user, before the first attack. The brief
    of the attacker and the facts are not sent. Exchanges in which a filter withheld the reply are
    left out, because the target never saw them.
    """
    known = Conversation.of(conversation)
    if isinstance(known, Dialogue):
        return list(chat_messages(known.messages))
    messages: list[Message] = []
    if known.system:
        messages.append({"role": "system", "content": well_formed(known.system)})
    opening = known.prompt
    for index in range(0, len(known.turns), 2):
        attack, *answer = known.turns[index : index + 2]
        if answer and Utterance.of(answer[0]).finish_reason == "content_filter":
            continue
        said = "\n".join(part for part in (opening, attack) if part)
        opening = ""
        messages.append({"role": "user", "content": well_formed(said)})
        if answer:
            messages.append({"role": "assistant", "content": well_formed(str(answer[0]))})
    if opening:
        messages.append({"role": "user", "content": well_formed(opening)})
    return messages


def tools_of(conversation: str) -> tuple[Mapping[str, Any], ...]:
    """Return the tools that an agent has, in the form of the chat APIs; else nothing."""
    tools = conversation.tools if isinstance(conversation, Dialogue) else ()
    return tuple(tool.as_json() for tool in tools)


def last_user_text(messages: Sequence[Message]) -> str:
    """Return the content of the last user message; empty if there is none."""
    said = (each["content"] for each in reversed(messages) if each["role"] == "user")
    return text_of_content(next(said, ""))
