"""Base of targets that are called over the network or in another thread."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any, NamedTuple

from astra_rl.core.contracts import check_number
from astra_rl.core.images import image_urls, text_of_content
from astra_rl.core.messages import Dialogue, refuse_images
from astra_rl.core.plain_chat import as_plain_chat
from astra_rl.core.reasoning import NO_ANSWER, split_reply
from astra_rl.core.seeding import current_row_seeds
from astra_rl.core.text import Utterance
from astra_rl.distributed.broker import ask, introduce
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.targets.base import Message, Target, messages_of, tools_of
from astra_rl.targets.budget import Prices, TokenBound, Usage
from astra_rl.targets.call_errors import CallError
from astra_rl.targets.caller import Answer, Caller, CallSettings, Send
from astra_rl.targets.reply_cache import cache_key, from_cache


class Chat(NamedTuple):
    """One call of a target.

    Attributes:
        messages: The conversation.
        seed: Sampling seed; None if equal chats should get the same cached reply.
        tools: Tools of an agent, in the form of the chat APIs.
    """

    messages: Sequence[Message]
    seed: int | None = None
    tools: Sequence[Mapping[str, Any]] = ()


class RemoteTarget(Target):
    """A target whose calls take time, may fail and may cost money.

    It also answers chats: pass it as `complete` of an `LLMJudgeModerator`.

    A subclass defines `connected`, which opens a connection, and `settings`.

    Args:
        name: Name in records.
        calls: Concurrency, retries and timeouts; see `CallSettings`.
        prices: ``{"input": ..., "output": ...}``: cost per million tokens; None is unknown.

    Raises:
        ConfigurationError: A setting is unknown or out of range.
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
        introduce(self)

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What a reply depends on besides the chat, as JSON values without credentials."""

    @asynccontextmanager
    @abstractmethod
    async def connected(self) -> AsyncIterator[Send[Chat, Utterance]]:
        """Open a connection for a batch of chats; it is closed at the end of the batch."""
        yield _never  # pragma: no cover

    @property
    def identity(self) -> str:
        """The name and a hash of the settings."""
        return f"{self.name} {cache_key([self.settings])[:12]}"

    def respond(self, conversations: Sequence[str]) -> list[Utterance]:
        """Return one reply per conversation; see `Target.respond`.

        Raises:
            ConfigurationError: A conversation has an image and `reads_images` is not set, or tools
                and `reads_chats` is not set.
        """
        if not self.reads_images:
            for each in conversations:
                refuse_images(self.name, each)
        conversations = [self._told(each) for each in conversations]
        seeds = current_row_seeds(len(conversations))
        return self._answer(
            [
                Chat(messages_of(each), seed, tools_of(each))
                for each, seed in zip(conversations, seeds, strict=True)
            ]
        )

    @property
    def reads_chats(self) -> bool:
        """Whether all messages of a chat are sent, not the last one alone."""
        return True

    @property
    def reads_tools(self) -> bool:
        """Whether tools and calls are sent in a form of their own; else in words of the chat."""
        return False

    def _told(self, conversation: str) -> str:
        """Return a conversation in which the target is told of its tools."""
        if not (isinstance(conversation, Dialogue) and conversation.tools) or self.reads_tools:
            return conversation
        if not self.reads_chats:
            raise ConfigurationError(
                f"{self.name} is sent the last message alone, so it cannot be an agent with tools; "
                "use a target that is sent the whole chat: type: openai, type: http with "
                '"{messages}" in its body, or a function of messages and tools.'
            )
        return as_plain_chat(conversation)

    def __call__(self, chats: Sequence[Sequence[Message]]) -> list[Utterance]:
        """Return the reply to each chat; with a cache, equal chats get the same reply."""
        return self._answer([Chat(messages) for messages in chats])

    @property
    def address(self) -> str:
        """See `astra_rl.distributed.broker.Endpoint`."""
        return f"{type(self).__name__} {self.identity}"

    def pack(self, item: Chat) -> Any:
        """See `astra_rl.distributed.broker.Endpoint`."""
        return [[dict(each) for each in item.messages], item.seed, [dict(t) for t in item.tools]]

    def unpack(self, packed: Any) -> Chat:
        """See `astra_rl.distributed.broker.Endpoint`."""
        return Chat(*packed)

    def _answer(self, chats: Sequence[Chat]) -> list[Utterance]:
        return list(map(Utterance.of, ask(self, chats)))

    def answer(self, items: Sequence[Chat]) -> list[Utterance]:
        """Return the reply to each chat, from this process."""
        return from_cache(
            self.name,
            items,
            self._key,
            lambda new, on_reply: self._caller.call(
                self.connected, new, answered=on_reply, token_bound=self._token_bound
            ),
        )

    def _token_bound(self, chat: Chat) -> TokenBound:
        return TokenBound(most_tokens(chat.messages, chat.tools), self.most_output_tokens)

    def _key(self, chat: Chat) -> str:
        messages = [dict(message) for message in chat.messages]
        tools = [[dict(tool) for tool in chat.tools]] if chat.tools else []
        return cache_key([type(self).__name__, self.identity, messages, chat.seed, *tools])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


TOKENS_OF_A_CALL, TOKENS_OF_A_MESSAGE = 64, 16
"""Assumed tokens that a chat template adds per chat and per message."""
TOKENS_OF_AN_IMAGE = 3000
"""Assumed tokens of an image; the number depends on the model and on the size of the image."""


def most_tokens(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> int:
    """Return an upper bound of the input tokens of a chat: its bytes, its images, the template.

    If a template adds more, the ledger raises the bound of later calls; see `Ledger`.
    """
    contents = [each["content"] for each in messages]
    texts = sum(len(text_of_content(each).encode()) + TOKENS_OF_A_MESSAGE for each in contents)
    images = TOKENS_OF_AN_IMAGE * sum(len(image_urls(each)) for each in contents)
    calls = [each["tool_calls"] for each in messages if "tool_calls" in each]
    data = sum(len(json.dumps(each)) for each in (*calls, *tools))
    return TOKENS_OF_A_CALL + texts + images + data


async def _never(chat: Chat) -> Answer[Utterance]:
    raise NotImplementedError


def answer_of(
    chat: Chat,
    reply: Utterance,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
) -> Answer[Utterance]:
    """Return a reply with its token usage; a count that is not given is estimated."""
    characters = sum(len(text_of_content(message["content"])) for message in chat.messages)
    guess = Usage.estimate(characters, len(reply) + len(reply.reasoning or ""))
    inputs = guess.input if input_tokens is None else input_tokens
    outputs = guess.output if output_tokens is None else output_tokens
    return Answer(reply, Usage(inputs, outputs, None in (input_tokens, output_tokens)))


def read_text(text: str) -> Utterance:
    """Return a reply without its reasoning, which is kept apart.

    Raises:
        CallError: The text ends in its reasoning.
    """
    reply = split_reply(text)
    if reply.answer is None:
        raise CallError(NO_ANSWER, "the text ends before the end of the reasoning")
    return Utterance(reply.answer, reasoning=reply.reasoning)


def check_count(name: str, value: Any) -> None:
    """Raise unless a number is None, or a whole number of at least 1.

    Raises:
        ConfigurationError: It is not valid.
    """
    if value is not None:
        check_number(name, value, lambda n: n >= 1 and n == int(n), "a whole number, 1 or more")


def made(kind: type[Any], name: str, given: Any) -> Any:
    """Return an options dataclass, given as an instance or as a mapping; None stays None.

    Raises:
        ConfigurationError: A name is unknown, or a value is out of range.
    """
    if given is None or isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{name}={given!r}; it must be a mapping of names to values.")
    known = [each.name for each in fields(kind)]
    for key in given:
        if key not in known:
            raise ConfigurationError(
                f"{name}.{key}: unknown key.{did_you_mean(str(key), known)} "
                f"Known: {', '.join(known)}."
            )
    return kind(**given)


__all__ = ["Chat", "RemoteTarget", "answer_of", "check_count", "made", "read_text"]
