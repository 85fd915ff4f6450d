"""Chat templates and control tokens of tokenizers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from astra_rl.errors import ConfigurationError, first_line
from astra_rl.logging import logger

_PLACEHOLDER = "ASTRA{}SLOT"
_PAD = "\N{EM SPACE}"  # a space that str.strip removes and no template contains
_CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>[^'"\\]*)(?P=quote)\s*\)""")

_template_time: ContextVar[datetime | None] = ContextVar("template_time", default=None)


@contextmanager
def template_time(moment: datetime) -> Iterator[None]:
    """Context in which chat templates are read with this date and time.

    Many templates insert the current date with ``strftime_now``. A run reads them at its start, so
    the prompt does not change at midnight or when the run is resumed.
    """
    token = _template_time.set(moment)
    try:
        yield
    finally:
        _template_time.reset(token)


@dataclass(frozen=True)
class SplitTemplate:
    """A chat template for messages of given roles, split at their contents.

    Attributes:
        literals: The template's text before, between and after the contents; one more than `order`.
        order: Index of the message between two literals. Some templates move the system message.
        strips: By message: whether the template strips white space at the start and at the end of
            its content.
    """

    literals: tuple[str, ...]
    order: tuple[int, ...]
    strips: tuple[tuple[bool, bool], ...]

    def strip(self, message: int, text: str) -> str:
        """Return the content of a message as the template shows it."""
        start, end = self.strips[message]
        text = text.lstrip() if start else text
        return text.rstrip() if end else text

    def around(self, message: int) -> tuple[str, str]:
        """Return the literals before and after the content of a message."""
        place = self.order.index(message)
        return self.literals[place], self.literals[place + 1]


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer with its arguments, at a fixed time.

    Attributes:
        tokenizer: Its tokenizer, which has a template.
        text: The Jinja template, with the date and time inserted.
        arguments: Further variables of the template, for instance ``{"enable_thinking": False}``.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None
    ) -> ChatTemplate:
        """Return the template of a tokenizer at the time of `template_time`, or now.

        Raises:
            ConfigurationError: An argument is one that the library sets.
        """
        arguments = dict(arguments or {})
        taken = {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"}
        if reserved := sorted(taken & set(arguments)):
            raise ConfigurationError(
                f"chat_template_kwargs has {', '.join(reserved)}, which the library sets; leave "
                "it out."
            )
        text = str(tokenizer.get_chat_template())
        return cls(tokenizer, _at(text, _template_time.get() or datetime.now(UTC)), arguments)

    def render(self, messages: Sequence[Mapping[str, str]], *, reply: bool = True) -> str:
        """Return messages as text.

        Args:
            messages: Messages with ``role`` and ``content``.
            reply: Whether to append what precedes a reply of the model.

        Raises:
            ConfigurationError: The template rejects the messages.
        """
        return self.render_chat(messages, None, reply=reply)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        reply: bool = True,
    ) -> str:
        """Return messages of an agent as text.

        Args:
            messages: Messages in the form of the chat APIs.
            tools: The tools in that form; None for none.
            reply: Whether to append what precedes a reply of the model.

        Raises:
            ConfigurationError: The template rejects the messages.
        """
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(each) for each in messages],
                    chat_template=self.text,
                    tokenize=False,
                    add_generation_prompt=reply,
                    tools=None if tools is None else [dict(each) for each in tools],
                    **self.arguments,
                )
            )
        except Exception as error:  # a template can raise anything that its expressions raise
            raise ConfigurationError(
                f"the chat template of {self.name} rejects messages with the roles "
                f"{[each['role'] for each in messages]}: {first_line(error)}. Use chat=False, or "
                "another template."
            ) from error

    def split(self, roles: Sequence[str], *, reply: bool = True) -> SplitTemplate:
        """Split the template at the contents of messages with these roles.

        It is rendered once with a placeholder for each content and split at the placeholders, so
        model output never passes through the template.

        Raises:
            ConfigurationError: The template rejects these roles, or does not render each message
                exactly once.
        """
        placeholders = [_PLACEHOLDER.format(index) for index in range(len(roles))]
        contents = [f"{_PAD}{each}{_PAD}" for each in placeholders]
        text = self.render(
            [{"role": role, "content": each} for role, each in zip(roles, contents, strict=True)],
            reply=reply,
        )
        # The capture group keeps the placeholders: each must occur once.
        pieces = re.split(f"({_PAD}?(?:{'|'.join(placeholders)}){_PAD}?)", text)
        found = [piece.strip(_PAD) for piece in pieces[1::2]]
        if sorted(found) != sorted(placeholders):
            raise ConfigurationError(
                f"the chat template of {self.name} does not render each message of the roles "
                f"{list(roles)} once. Use chat=False, or another template."
            )
        order = tuple(placeholders.index(each) for each in found)
        strips = {
            message: (piece[0] != _PAD, piece[-1] != _PAD)
            for message, piece in zip(order, pieces[1::2], strict=True)
        }
        return SplitTemplate(
            tuple(pieces[0::2]), order, tuple(strips[index] for index in range(len(roles)))
        )

    @property
    def name(self) -> str:
        """Name of the tokenizer, for messages."""
        return self.tokenizer.name_or_path or "this tokenizer"


def _at(template: str, moment: datetime) -> str:
    """Return a template with ``strftime_now`` replaced by a date."""

    def date(found: re.Match[str]) -> str:
        return repr(moment.strftime(found["format"]))

    text = _CLOCK.sub(date, template)
    if re.search(r"strftime_now\(", text):
        logger.warning(
            "a chat template computes the format of the current date, so its prompts depend on the "
            "time at which they are read"
        )
    return text


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the control tokens of the tokenizer and its template; text must not contain them."""
    template = str(tokenizer.chat_template or "")
    return frozenset(
        index
        for index, token in tokenizer.added_tokens_decoder.items()
        if (token.special or (token.content.strip() and token.content in template))
        # The unknown token may occur in any text.
        and index != tokenizer.unk_token_id
    )


def end_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the end-of-sequence tokens of the tokenizer."""
    ends = tokenizer.eos_token_id
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, list) else {int(ends)}


@lru_cache(maxsize=16)
def newline_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return all tokens whose text contains a line break."""
    return frozenset(index for index in range(len(tokenizer)) if "\n" in tokenizer.decode([index]))
