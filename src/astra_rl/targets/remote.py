"""What all targets outside of this process have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any, NamedTuple

from astra_rl.core.contracts import check_number
from astra_rl.core.seeding import current_row_seeds
from astra_rl.core.text import Utterance
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.targets.base import Message, Target, messages_of
from astra_rl.targets.budget import Prices, Usage, Worst
from astra_rl.targets.caller import Answer, Caller, CallSettings, Send
from astra_rl.targets.reply_cache import cache_key, from_cache


class Chat(NamedTuple):
    """One thing to be asked.

    Attributes:
        messages: The conversation.
        seed: Of the answer; None where the same chat shall get the same reply.
    """

    messages: Sequence[Message]
    seed: int | None = None


class RemoteTarget(Target):
    """A target that is asked by calls which take time, may fail and may cost something.

    It also answers chats, as a judge needs it: pass it as `complete` of an `LLMJudgeModerator`.

    A subclass defines `connected`, which opens what it is asked with, and `settings`.

    Args:
        name: How it is called in records.
        calls: How it is called, see `CallSettings`.
        prices: Of its tokens: ``{"input": ..., "output": ...}`` per million.

    Raises:
        ConfigurationError: An unknown setting, or a value out of range.
    """

    def __init__(
        self,
        name: str,
        calls: CallSettings | Mapping[str, Any] | None = None,
        prices: Prices | Mapping[str, float] | None = None,
    ) -> None:
        self.name = name
        self.calls = made(CallSettings, "calls", calls) or CallSettings()
        self.prices = made(Prices, "prices", prices)
        self._caller = Caller(name, self.calls, prices=self.prices)

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """All that a reply depends on besides the chat, as JSON values without secrets."""

    @asynccontextmanager
    @abstractmethod
    async def connected(self) -> AsyncIterator[Send[Chat, Utterance]]:
        """Open what a batch of chats is asked with, and close it at the end of the batch."""
        yield _never  # pragma: no cover

    @property
    def identity(self) -> str:
        """Name and settings, hashed: what tells one from another."""
        return f"{self.name} {cache_key([self.settings])[:12]}"

    def respond(self, conversations: Sequence[str]) -> list[Utterance]:
        """Return one reply per conversation; see `Target.respond`."""
        seeds = current_row_seeds(len(conversations))
        return self._answer(
            [Chat(messages_of(each), seed) for each, seed in zip(conversations, seeds, strict=True)]
        )

    def __call__(self, chats: Sequence[Sequence[Message]]) -> list[Utterance]:
        """Return the reply to each chat; the same chat gets the same reply from a cache."""
        return self._answer([Chat(messages) for messages in chats])

    def _answer(self, chats: Sequence[Chat]) -> list[Utterance]:
        return from_cache(
            self.name,
            chats,
            self._key,
            lambda new, told: self._caller.call(
                self.connected, new, answered=told, worst=self._worst
            ),
        )

    def _worst(self, chat: Chat) -> Worst:
        return Worst(most_tokens(chat.messages), self.most_output_tokens)

    def _key(self, chat: Chat) -> str:
        messages = [dict(message) for message in chat.messages]
        return cache_key([type(self).__name__, self.identity, messages, chat.seed])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


TOKENS_OF_A_CALL, TOKENS_OF_A_MESSAGE = 64, 16
"""Most tokens that a template is taken to put around a chat, and around each of its messages."""


def most_tokens(messages: Sequence[Message]) -> int:
    """Return the most tokens that an endpoint reads of a chat: no tokenizer needs more than bytes.

    What its template adds is allowed for; one that adds more is found out, see `Ledger`.
    """
    texts = sum(len(each["content"].encode()) + TOKENS_OF_A_MESSAGE for each in messages)
    return TOKENS_OF_A_CALL + texts


async def _never(chat: Chat) -> Answer[Utterance]:
    raise NotImplementedError


def answer_of(
    chat: Chat, reply: Utterance, read: int | None = None, written: int | None = None
) -> Answer[Utterance]:
    """Return a reply with the tokens it took; those that nobody counted are estimated."""
    if read is not None and written is not None:
        return Answer(reply, Usage(read, written))
    characters = sum(len(message["content"]) for message in chat.messages)
    return Answer(reply, Usage.estimate(characters, len(reply)))


def check_count(name: str, value: Any) -> None:
    """Raise unless a number of tokens or replies is whole and at least 1; None says nothing.

    Raises:
        ConfigurationError: It is not.
    """
    if value is not None:
        check_number(name, value, lambda n: n >= 1 and n == int(n), "a whole number, 1 or more")


def made(kind: type[Any], name: str, given: Any) -> Any:
    """Return settings of a kind, given as such or by name; None stays None.

    Raises:
        ConfigurationError: An unknown name, or a value out of range.
    """
    if given is None or isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{name}: {given!r} given; write names and values here.")
    known = [each.name for each in fields(kind)]
    for key in given:
        if key not in known:
            raise ConfigurationError(
                f"{name}.{key}: unknown key.{did_you_mean(str(key), known)} "
                f"Known: {', '.join(known)}."
            )
    return kind(**given)


__all__ = ["Chat", "RemoteTarget", "answer_of", "check_count", "made"]
