"""Rendering of conversations to prompt token ids, with or without a chat template.

Attacker and target have tokenizers of their own. Turns that a model sampled itself are inserted as
the exact token ids it sampled and are never re-tokenised. Turns of the other model are tokenised
from text, and control tokens in that text are split into ordinary tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from astra_rl.core.text import Conversation, Utterance, written_text
from astra_rl.errors import ConfigurationError
from astra_rl.infra.unicode import well_formed
from astra_rl.logging import logger
from astra_rl.models.chat_template import (
    control_ids,
    end_ids,
    newline_ids,
    split_template,
)
from astra_rl.models.positions import position_limit

Side = Literal["attacker", "target"]

DEFAULT_BRIEF = "Write the next message of a user who talks to an assistant."
"""Instructions of a chat attacker for conversations without a brief."""


@dataclass(frozen=True)
class RenderedPrompt:
    """Prompt of a model for its next turn.

    Attributes:
        ids: Token ids; empty if not even the last turn fits the context window.
        last_turn: Start and end, in `ids`, of the other side's last turn; equal if there is none.
        dropped_turns: Number of oldest turns that were removed to fit the context window.
    """

    ids: tuple[int, ...]
    last_turn: tuple[int, int] = (0, 0)
    dropped_turns: int = 0


@dataclass
class _Piece:
    """Token ids from one source: the template, instructions, the other side's turns, own turns."""

    ids: list[int]
    kind: Literal["literal", "text", "other", "own"]


@dataclass
class _Message:
    role: Literal["system", "user", "assistant"]
    parts: list[_Piece] = field(default_factory=list)


class ConversationRenderer:
    """Renders conversations from the perspective of one side, attacker or target.

    Args:
        tokenizer: Tokenizer of the side's model.
        side: The side whose turns have the assistant role.
        window: Context window: maximum number of prompt and new tokens; None is unlimited.
        chat: Whether to use the tokenizer's chat template; None uses it if there is one. Without a
            template, brief, prompt and turns are concatenated to one plain text. If the template
            does not support system messages, they are prepended to the first user message.
        stop_at_newline: Also stop at the first line break, for attackers without a chat template.
        reuse_own_ids: Whether the token ids of the side's own utterances belong to this tokenizer's
            vocabulary; otherwise these utterances are tokenised from text.
        reuse_other_ids: The same for the other side's utterances. It applies to plain text only: in
            a chat template they are always tokenised from text, so they contain no control token.

    Attributes:
        end_ids: Tokens that end a turn.
        stop_ids: Tokens that end generation: `end_ids`, and line breaks if `stop_at_newline`.

    Raises:
        ConfigurationError: `chat` is True and the tokenizer has no chat template, or the template
            does not render every message of a conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        side: Side,
        *,
        window: int | None = None,
        chat: bool | None = None,
        stop_at_newline: bool = False,
        reuse_own_ids: bool = True,
        reuse_other_ids: bool = False,
    ) -> None:
        has_template = bool(tokenizer.chat_template)
        if chat and not has_template:
            raise ConfigurationError(
                f"the {side}'s tokenizer has no chat template; pass chat=False to use plain "
                "text, or use an instruction-tuned model."
            )
        self.tokenizer = tokenizer
        self.side = side
        self.window = window
        self.chat = has_template if chat is None else chat
        if chat is None and not has_template:
            _warn_of_plain_text(side, tokenizer.name_or_path)
        self.reuse_own_ids = reuse_own_ids
        self.reuse_other_ids = reuse_other_ids
        self._templates: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._control_ids = control_ids(tokenizer)
        self._end_id = self._find_end_id()
        self.end_ids = end_ids(tokenizer)
        if self._end_id is not None:
            self.end_ids.add(self._end_id)
        self.stop_ids = self.end_ids | (newline_ids(tokenizer) if stop_at_newline else set())
        self._supports_system = self.chat and self._supports_roles(
            ("system", "user", "assistant", "user")
        )

    def render(self, conversation: Conversation, *, reserve: int) -> RenderedPrompt:
        """Return the prompt for the side's next turn.

        A conversation that exceeds the context window is truncated: the oldest turns are dropped
        first, then the beginning of the longest remaining text. If nothing remains, `ids` is empty.

        Args:
            conversation: The conversation so far.
            reserve: Number of tokens of the context window reserved for generation.
        """
        pieces = self._pieces(conversation)
        if self.window is None or _size(pieces) <= self.window - reserve:
            return _assemble(pieces, 0)
        dropped = 0
        while len(conversation.turns) > 2 and _size(pieces) > self.window - reserve:
            conversation = self._without_oldest_exchange(conversation)
            pieces = self._pieces(conversation)
            dropped += 2
        return _assemble(_truncate(pieces, self.window - reserve), dropped)

    def utterance_ids(self, utterance: str) -> tuple[int, ...]:
        """Return the token ids of one of the side's own turns: the sampled ones, if known.

        Text without ids is tokenised and, for a chat model, terminated with the end token. Private
        reasoning is part of an own turn.
        """
        if (
            self.reuse_own_ids
            and isinstance(utterance, Utterance)
            and utterance.token_ids is not None
        ):
            return utterance.token_ids
        ids = self._text_ids(written_text(utterance))
        if self.chat and self._end_id is not None:
            ids.append(self._end_id)
        return tuple(ids)

    def token_ends(self, utterance: str) -> list[int]:
        """Return the end offset, in characters, of each token of one of the side's own turns."""
        ids, length = self.utterance_ids(utterance), len(written_text(utterance))
        whole = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        stripped = len(whole) - len(whole.lstrip()) if self.chat else 0
        ends = [0]
        for count in range(1, len(ids) + 1):
            # Decoded cumulatively, because a character may consist of several tokens.
            prefix = str(self.tokenizer.decode(list(ids[:count]), skip_special_tokens=True))
            ends.append(max(ends[-1], min(length, len(prefix) - stripped)))
        return ends[1:]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return sampled token ids as text, without the end token and other control tokens."""
        ids = list(token_ids)
        ended_line = False
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        elif ids and ids[-1] in self.stop_ids:
            ended_line = True
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        if ended_line:
            text = text.partition("\n")[0]  # a token with a line break may contain other characters
        return text.strip() if self.chat else text

    def _pieces(self, conversation: Conversation) -> list[_Piece]:
        return (
            self._chat_pieces(conversation) if self.chat else self._plain_text_pieces(conversation)
        )

    def _plain_text_pieces(self, conversation: Conversation) -> list[_Piece]:
        instructions = conversation.brief if self.side == "attacker" else conversation.system
        opening = self._text_ids(_join("", instructions, conversation.prompt))
        begin = self._begin_ids()
        if not begin and not opening:
            begin = [self._first_id()]  # the prompt must have at least one token
        pieces = [_Piece(begin, "literal"), _Piece(opening, "text")]
        for index, turn in enumerate(conversation.turns):
            own = self._is_own(index)
            ids = list(self.utterance_ids(turn)) if own else self._other_ids(turn)
            while ids and ids[-1] in self.end_ids:
                ids.pop()  # an end token inside the prompt would end the text
            pieces.append(_Piece(ids, "own" if own else "other"))
        return pieces

    def _chat_pieces(self, conversation: Conversation) -> list[_Piece]:
        messages = self._messages(conversation)
        literals = self._literals(tuple(message.role for message in messages))
        pieces: list[_Piece] = []
        for literal, message in zip(literals, [*messages, None], strict=True):
            ids = list(self._literal_ids(literal))
            if pieces and pieces[-1].kind == "own" and pieces[-1].ids:
                last = pieces[-1].ids
                if ids and last[-1] == ids[0]:
                    ids = ids[1:]  # the end token was sampled; the template must not repeat it
                elif last[-1] in self.stop_ids:
                    last.pop()  # replaced by the end of turn of the template
            pieces.append(_Piece(ids, "literal"))
            if message is not None:
                pieces.extend(message.parts)
        return pieces

    def _messages(self, conversation: Conversation) -> list[_Message]:
        messages: list[_Message] = []
        instructions = conversation.brief or DEFAULT_BRIEF
        if self.side == "target":
            instructions = conversation.system or ""
            if instructions and self._supports_system:
                messages.append(self._message("system", instructions))
                instructions = ""
        first = _join("\n\n", instructions, conversation.prompt)
        opening = self._message("user", first)
        if self.side == "attacker" or not conversation.turns:
            messages.append(opening)
        for index, turn in enumerate(conversation.turns):
            if self._is_own(index):
                messages.append(
                    _Message("assistant", [_Piece(list(self.utterance_ids(turn)), "own")])
                )
                continue
            message = _Message("user")
            if index == 0 and first:
                glue = "\n" if conversation.prompt else "\n\n"
                message.parts = [*opening.parts, _Piece(self._text_ids(glue), "text")]
            message.parts.append(_Piece(self._text_ids(turn.strip()), "other"))
            messages.append(message)
        return messages

    def _without_oldest_exchange(self, conversation: Conversation) -> Conversation:
        # For a target, and in plain text, the opening prompt is the oldest part and is dropped. A
        # chat attacker's opening is in the same message as its brief, and is kept.
        keep_prompt = self.chat and self.side == "attacker"
        return Conversation(
            conversation.prompt if keep_prompt else "",
            turns=conversation.turns[2:],
            system=conversation.system,
            brief=conversation.brief,
        )

    def _message(self, role: Literal["system", "user"], text: str) -> _Message:
        return _Message(role, [_Piece(self._text_ids(text), "text")])

    def _is_own(self, turn_index: int) -> bool:
        return (turn_index % 2 == 0) == (self.side == "attacker")

    def _text_ids(self, text: str) -> list[int]:
        """Tokenise untrusted text; the string "<|im_start|>" never becomes a control token."""
        text = well_formed(text)
        ids = self._plain_ids(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # split_special_tokens covers special tokens only; some templates use other added tokens.
        controls = map(re.escape, self.tokenizer.convert_ids_to_tokens(sorted(self._control_ids)))
        cuts = [match.start() + 1 for match in re.finditer(f"(?=({'|'.join(controls)}))", text)]
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
        ids = [token for part in parts for token in self._plain_ids(part)]
        return [token for token in ids if token not in self._control_ids]

    def _plain_ids(self, text: str) -> list[int]:
        if not text:
            return []
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return list(ids)

    def _other_ids(self, turn: str) -> list[int]:
        sampled = turn.token_ids if isinstance(turn, Utterance) else None
        # The ids of an extracted text are those of the whole output, with private reasoning.
        if self.reuse_other_ids and sampled is not None and written_text(turn) == turn:
            return list(sampled)
        return self._text_ids(turn)

    def _literal_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def _begin_ids(self) -> list[int]:
        """Tokens that the tokenizer prepends to a text, for example BOS."""
        ids = list(self.tokenizer("", add_special_tokens=True).input_ids)
        return ids[:1] if ids and ids[0] == self.tokenizer.bos_token_id else []

    def _first_id(self) -> int:
        begin, ends = self.tokenizer.bos_token_id, sorted(end_ids(self.tokenizer))
        return int(begin) if begin is not None else (ends or [0])[0]

    def _find_end_id(self) -> int | None:
        """Return the token that ends the side's turns; None if there is none."""
        ends = sorted(end_ids(self.tokenizer))
        if self.chat:
            # Many chat models end a turn with another token than EOS.
            after_own = self._literal_ids(self._literals(("user", "assistant", "user"))[2])
            if after_own and after_own[0] in self._control_ids:
                return after_own[0]
        return ends[0] if ends else None

    def _supports_roles(self, roles: tuple[str, ...]) -> bool:
        try:
            self._literals(roles)
        except ConfigurationError:
            return False
        return True

    def _literals(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        """Return the template's literal text around the contents of messages with these roles."""
        if roles not in self._templates:
            self._templates[roles] = split_template(self.tokenizer, roles)
        return self._templates[roles]


def context_window(model_config: Any) -> int | None:
    """Return the context window of a model, in tokens; None if its configuration has no limit.

    It ends at the limit of the position embeddings, see `astra_rl.models.positions`.
    """
    config = model_config.get_text_config()
    sizes = [
        getattr(config, name, None)
        for name in ("max_position_embeddings", "n_positions", "max_seq_len")
    ]
    size = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    return min(filter(None, (size, position_limit(model_config))), default=None)


def same_vocabulary(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have the same vocabulary, so that token ids can be exchanged."""
    return a is b or a.get_vocab() == b.get_vocab()


def _join(separator: str, *parts: str | None) -> str:
    return separator.join(str(part) for part in parts if part)


def _size(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)


def _truncate(pieces: list[_Piece], budget: int) -> list[_Piece]:
    """Left-truncate the longest text until all pieces fit; empty if that is impossible."""
    while (excess := _size(pieces) - budget) > 0:
        longest = max(
            (piece for piece in pieces if piece.kind != "literal"),
            key=lambda piece: len(piece.ids),
            default=None,
        )
        # At least one token of content must remain in the prompt.
        if longest is None or len(longest.ids) <= 1:
            return []
        longest.ids = longest.ids[min(excess, len(longest.ids) - 1) :]
    return pieces


def _assemble(pieces: Sequence[_Piece], dropped: int) -> RenderedPrompt:
    ids: list[int] = []
    last_turn = (0, 0)
    for piece in pieces:
        if piece.kind == "other":
            last_turn = (len(ids), len(ids) + len(piece.ids))
        ids.extend(piece.ids)
    return RenderedPrompt(tuple(ids), last_turn, dropped)


@lru_cache(maxsize=64)
def _warn_of_plain_text(side: Side, name: str) -> None:
    """Log once per model that it is not prompted as a chat model."""
    logger.warning(
        "the %s's tokenizer%s has no chat template: the texts of a conversation are joined to one "
        "plain text, which the model continues. Set chat: false if that is intended; otherwise "
        "use an instruction-tuned model",
        side,
        f" ({name})" if name else "",
    )
