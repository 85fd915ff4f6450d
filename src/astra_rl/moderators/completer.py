"""Anything that answers chats, and its replies; no model library is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from astra_rl.core.contracts import check_length
from astra_rl.core.moderator import Score, missing_score
from astra_rl.targets.base import Message


class Completer(Protocol):
    """Anything that answers chats, for instance the client of an endpoint.

    A reply is a text. A reply that failed is a `FailedReply`, for instance a
    `astra_rl.core.text.NoReply`. The attributes ``identity``, ``model`` and ``name``, where there
    are any, are part of the identity of the judge; see `astra_rl.core.weights.weights_of`. Every
    `astra_rl.targets.RemoteTarget` is a completer.
    """

    def __call__(self, chats: Sequence[Sequence[Message]]) -> Sequence[str]:
        """Return the reply to each chat, in order; a single failure must not raise."""


@runtime_checkable
class FailedReply(Protocol):
    """A reply that failed, whatever text it has.

    Attributes:
        reason: Why, in a few words that can be counted.
    """

    reason: str


def reason_without_reply(reply: str) -> str | None:
    """Return why there is no reply; None if there is one."""
    if isinstance(reply, FailedReply):
        return str(reply.reason)
    return None if isinstance(reply, str) else "no reply"


def replies_of(complete: Completer, chats: Sequence[Sequence[Message]]) -> list[str | Score]:
    """Return the reply to each chat; where there is none, the missing score that says why.

    Raises:
        ContractError: `complete` returned another number of replies.
    """
    replies = complete(chats) if chats else []
    check_length(replies, len(chats), source="complete")
    return [
        str(reply)
        if (reason := reason_without_reply(reply)) is None
        else missing_score(reply, reason)
        for reply in replies
    ]
