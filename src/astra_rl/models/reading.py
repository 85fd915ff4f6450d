"""Reading of sampled replies: the answer, and the reasoning before it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from astra_rl.core.reasoning import DELIMITERS, Reply, split_reply
from astra_rl.logging import logger
from astra_rl.models.chat_template import ChatTemplate

_CHANNELS = "<|channel|>"
_FIELDS = ("reasoning_content", "reasoning", "thinking")
_THOUGHT, _SAID = "ASTRATHOUGHT", "ASTRAANSWER"


@dataclass(frozen=True)
class ReadReply:
    """A sampled reply in its parts.

    Attributes:
        answer: Text of the answer; None if the reply ended in its reasoning.
        reasoning: Text of the reasoning; None if there is none.
        answer_ids: Token ids of the answer, the end token included; None if they are not known
            apart from the reasoning.
        is_whole: Whether the answer is the whole reply.
    """

    answer: str | None
    reasoning: str | None
    answer_ids: tuple[int, ...] | None
    is_whole: bool


class ReplyReader:
    """Separates the reasoning in sampled replies from their answers.

    The ``response_template`` of the tokenizer is used if it has one, else the delimiters of
    `astra_rl.core.reasoning` that occur in the chat template or in the added tokens.

    Args:
        template: The chat template.
        opening: Its text before a reply, which may begin the reasoning.
    """

    def __init__(self, template: ChatTemplate, opening: str) -> None:
        self.template, self.opening = template, opening
        self.tokenizer = template.tokenizer
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        self.delimiters = [
            pair
            for pair in DELIMITERS
            if any(mark in template.text or mark in added for mark in pair)
        ]
        self._has_channels = _CHANNELS in template.text
        self._parser = getattr(self.tokenizer, "response_template", None)
        self._end = next(
            (end for begin, end in self.delimiters if opening.rfind(begin) > opening.rfind(end)),
            None,
        )
        self.read = lru_cache(maxsize=4096)(self._read)

    @property
    def rules(self) -> tuple[object, ...] | None:
        """What decides how token ids are read; None if they are not read at all."""
        if not self.is_active:
            return None
        return self.delimiters, self._has_channels, self._parser, self._end, self.opening

    @property
    def is_active(self) -> bool:
        """Whether the model may reason before it answers."""
        return bool(self.delimiters or self._has_channels or self._parser)

    def _read(self, ids: tuple[int, ...]) -> ReadReply:
        """Return the parts of a reply; `ids` are all its tokens but the final end token."""
        text = self._decode(ids)
        reply = self._parsed(text)
        if reply.answer is None:
            return ReadReply(None, reply.reasoning, None, is_whole=False)
        if reply.start == 0:
            return ReadReply(reply.answer, reply.reasoning, ids, is_whole=True)
        # The first token of the answer: decoded lengths grow with the number of tokens.
        first = bisect_left(
            range(len(ids) + 1), reply.start, key=lambda count: len(self._decode(ids[:count]))
        )
        answer_ids = ids[first:] if self._decode(ids[first:]) == text[reply.start :] else None
        answer = (
            reply.answer
            if answer_ids is None
            else str(self.tokenizer.decode(list(answer_ids), skip_special_tokens=True))
        )
        return ReadReply(answer, reply.reasoning, answer_ids, is_whole=False)

    def _parsed(self, text: str) -> Reply:
        if self._parser is not None:
            try:
                message: Any = self.tokenizer.parse_response(text, prefix=self.opening)
            except Exception as error:  # a template of the model folder can raise anything
                logger.debug("response_template: %s", error)
            else:
                return _reply_of(message, text)
        if not self.delimiters and not self._has_channels:
            return Reply(text)
        return split_reply(text, self.delimiters, end=self._end)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    @cached_property
    def keeps_reasoning(self) -> bool:
        """Whether the template shows the reasoning of past answers."""
        begin, end = next(iter(self.delimiters), ("<think>", "</think>"))
        if self._has_channels:
            begin, end = f"{_CHANNELS}analysis<|message|>", "<|end|>"
        content = f"{begin}\n{_THOUGHT}\n{end}\n\n{_SAID}"
        try:
            text = self.template.render(
                [
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": content},
                    {"role": "user", "content": "Go on"},
                ]
            )
        except Exception:  # it refuses reasoning in a message
            return False
        return _THOUGHT in text


def _reply_of(message: Mapping[str, Any], text: str) -> Reply:
    """Return the parts of a parsed message of transformers."""
    reasoning = next((str(message[key]) for key in _FIELDS if message.get(key)), None)
    content = message.get("content")
    if not isinstance(content, str) or not content:
        return Reply(None, reasoning, len(text)) if reasoning else Reply(text)
    start = text.rfind(content)
    return Reply(content, reasoning, max(start, 1) if reasoning or start > 0 else 0)
