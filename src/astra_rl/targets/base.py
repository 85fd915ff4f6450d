"""What a target is that does not run in the library's own engine: conversations in, replies out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from astra_rl.core.text import Conversation, Utterance
from astra_rl.infra.unicode import well_formed
from astra_rl.targets.budget import Prices

Message = Mapping[str, str]
"""One message of a chat: ``role`` ("system", "user" or "assistant") and ``content``."""


class Target(ABC):
    """The model or the application under test, wherever it runs.

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
    def most_output_tokens(self) -> int | None:
        """Most tokens of a reply, for estimates and budgets; None if there is no known limit."""
        return None

    @abstractmethod
    def respond(self, conversations: Sequence[str]) -> Sequence[str]:
        """Return one reply per conversation, in order; each ends in an attack.

        A reply is a text. One that did not come is a `astra_rl.core.text.NoReply`, which says why:
        no exception for a single row. What a filter withheld is an `astra_rl.core.text.Utterance`
        with the finish reason ``"content_filter"``.

        Raises:
            EndpointError: There is no use in asking again, for any row.
            BudgetSpentError: Nothing more may be spent.
        """


def messages_of(conversation: str) -> list[Message]:
    """Return what a chat endpoint is sent: the target's view of a conversation.

    The opening stands in the first message of the user, before the first attack; the attacker's
    brief and the facts are not sent. An exchange in which a filter withheld the answer is left out:
    the target never saw it.
    """
    known = Conversation.of(conversation)
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


def last_user_text(messages: Sequence[Message]) -> str:
    """Return the last message of the user; empty if there is none."""
    return next((each["content"] for each in reversed(messages) if each["role"] == "user"), "")
