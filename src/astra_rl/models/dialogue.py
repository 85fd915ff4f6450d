"""A conversation as one side's token ids.

The attacker and the target each see the dialogue through their own tokenizer: what they said
themselves as the exact ids they sampled, what the other said as text, tokenised once, with control
tokens neutralised. Nothing a model sampled is ever tokenised again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from astra_rl.core.text import Conversation, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.infra.unicode import well_formed

Side = Literal["attacker", "target"]

DEFAULT_BRIEF = "Write the next message of a user who talks to an assistant."
"""What a chat attacker is told where the conversation brings no brief."""


@dataclass(frozen=True)
class Rendered:
    """What a model reads before it speaks.

    Attributes:
        ids: Token ids; empty if not even the last turn fits the model's window.
        heard: Start and end, in `ids`, of the other side's last words; equal if there are none.
        dropped_turns: How many of the oldest turns were left out to fit the window.
    """

    ids: tuple[int, ...]
    heard: tuple[int, int] = (0, 0)
    dropped_turns: int = 0


@dataclass
class _Piece:
    ids: list[int]
    kind: Literal["literal", "text", "heard", "own"]


@dataclass
class _Message:
    role: Literal["system", "user", "assistant"]
    parts: list[_Piece] = field(default_factory=list)


class DialogueView:
    """One side's view of conversations.

    Args:
        tokenizer: The side's own tokenizer.
        side: Whose turns are its own.
        window: Most tokens that the model can read and write; None is unlimited.
        chat: Whether turns are put in the tokenizer's chat template; None if it has one.
            Without, a conversation is one running text: brief, prompt and turns in a row.
            A template that refuses system messages gets them in the first message of the user.
        stop_at_newline: Also end at the first line break, for attackers without a chat template.
        said_exactly: Whether the ids in the side's own utterances are of this tokenizer's
            vocabulary; if not, they are tokenised from text.
        hears_exactly: The same for the other side's ids. Only running text uses them: in a chat
            template the other's words are text, so that no control token gets through.

    Raises:
        ConfigurationError: `chat` is asked for and the tokenizer has no chat template, or one that
            does not show every message of a conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        side: Side,
        *,
        window: int | None = None,
        chat: bool | None = None,
        stop_at_newline: bool = False,
        said_exactly: bool = True,
        hears_exactly: bool = False,
    ) -> None:
        has_template = bool(tokenizer.chat_template)
        if chat and not has_template:
            raise ConfigurationError(
                f"the {side}'s tokenizer has no chat template; pass chat=False to continue plain "
                "text, or use an instruction-tuned model."
            )
        self.tokenizer = tokenizer
        self.side = side
        self.window = window
        self.chat = has_template if chat is None else chat
        self.said_exactly = said_exactly
        self.hears_exactly = hears_exactly
        self._skeletons: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._control_ids = _control_ids(tokenizer)
        self._end_id = self._find_end_id()
        self.end_ids = _end_ids(tokenizer)
        if self._end_id is not None:
            self.end_ids.add(self._end_id)
        self.stop_ids = self.end_ids | (_newline_ids(tokenizer) if stop_at_newline else set())
        self._shows_system = self.chat and self._shows(("system", "user", "assistant", "user"))

    def render(self, conversation: Conversation, *, room: int) -> Rendered:
        """Return what the side reads before it speaks, leaving `room` tokens to write.

        A conversation that does not fit loses its oldest turns first, then the beginning of its
        longest remaining text. If even that leaves nothing to read, `ids` is empty.
        """
        pieces = self._pieces(conversation)
        if self.window is None or _size(pieces) <= self.window - room:
            return _assemble(pieces, 0)
        dropped = 0
        while len(conversation.turns) > 2 and _size(pieces) > self.window - room:
            conversation = self._without_oldest_exchange(conversation)
            pieces = self._pieces(conversation)
            dropped += 2
        return _assemble(_cut(pieces, self.window - room), dropped)

    def said_ids(self, utterance: str) -> tuple[int, ...]:
        """Return the ids of the side's own words: those it sampled, if it did.

        Text that was not sampled is tokenised and, for a chat model, ended with its end token.
        """
        if (
            self.said_exactly
            and isinstance(utterance, Utterance)
            and utterance.token_ids is not None
        ):
            return utterance.token_ids
        ids = self._text_ids(utterance)
        if self.chat and self._end_id is not None:
            ids.append(self._end_id)
        return tuple(ids)

    def token_ends(self, utterance: str) -> list[int]:
        """Return where in an utterance of the side each of its tokens ends, in characters."""
        ids = self.said_ids(utterance)
        whole = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        stripped = len(whole) - len(whole.lstrip()) if self.chat else 0
        ends = [0]
        for count in range(1, len(ids) + 1):
            # Tokens are no texts of their own: a letter may be made of several.
            read = str(self.tokenizer.decode(list(ids[:count]), skip_special_tokens=True))
            ends.append(max(ends[-1], min(len(utterance), len(read) - stripped)))
        return ends[1:]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return sampled ids as text, without the end token and other control tokens."""
        ids = list(token_ids)
        ended_line = False
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        elif ids and ids[-1] in self.stop_ids:
            ended_line = True
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        if ended_line:
            text = text.partition("\n")[0]  # the token of a line break may begin with other letters
        return text.strip() if self.chat else text

    def _pieces(self, conversation: Conversation) -> list[_Piece]:
        return self._chat_pieces(conversation) if self.chat else self._stream_pieces(conversation)

    def _stream_pieces(self, conversation: Conversation) -> list[_Piece]:
        instructions = conversation.brief if self.side == "attacker" else conversation.system
        opening = self._text_ids(_join("", instructions, conversation.prompt))
        begin = self._begin_ids()
        if not begin and not opening:
            begin = [self._first_id()]  # a model must read something before it can speak
        pieces = [_Piece(begin, "literal"), _Piece(opening, "text")]
        for index, turn in enumerate(conversation.turns):
            own = self._is_own(index)
            ids = list(self.said_ids(turn)) if own else self._heard_ids(turn)
            while ids and ids[-1] in self.end_ids:
                ids.pop()  # an end token in the middle of a text would end the text
            pieces.append(_Piece(ids, "own" if own else "heard"))
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
                    ids = ids[1:]  # the end token was sampled, the template must not repeat it
                elif last[-1] in self.stop_ids:
                    last.pop()  # ended in another way than the template ends a turn
            pieces.append(_Piece(ids, "literal"))
            if message is not None:
                pieces.extend(message.parts)
        return pieces

    def _messages(self, conversation: Conversation) -> list[_Message]:
        messages: list[_Message] = []
        instructions = conversation.brief or DEFAULT_BRIEF
        if self.side == "target":
            instructions = conversation.system or ""
            if instructions and self._shows_system:
                messages.append(self._message("system", instructions))
                instructions = ""
        first = _join("\n\n", instructions, conversation.prompt)
        opening = self._message("user", first)
        if self.side == "attacker" or not conversation.turns:
            messages.append(opening)
        for index, turn in enumerate(conversation.turns):
            if self._is_own(index):
                messages.append(_Message("assistant", [_Piece(list(self.said_ids(turn)), "own")]))
                continue
            message = _Message("user")
            if index == 0 and first:
                glue = "\n" if conversation.prompt else "\n\n"
                message.parts = [*opening.parts, _Piece(self._text_ids(glue), "text")]
            message.parts.append(_Piece(self._text_ids(turn.strip()), "heard"))
            messages.append(message)
        return messages

    def _without_oldest_exchange(self, conversation: Conversation) -> Conversation:
        # For a target, and in running text, the opening is the oldest thing said and goes first;
        # a chat attacker's opening stands in the same message as its brief, and stays.
        stays = self.chat and self.side == "attacker"
        return Conversation(
            conversation.prompt if stays else "",
            turns=conversation.turns[2:],
            system=conversation.system,
            brief=conversation.brief,
        )

    def _message(self, role: Literal["system", "user"], text: str) -> _Message:
        return _Message(role, [_Piece(self._text_ids(text), "text")])

    def _is_own(self, turn_index: int) -> bool:
        return (turn_index % 2 == 0) == (self.side == "attacker")

    def _text_ids(self, text: str) -> list[int]:
        """Tokenise a text in which "<|im_start|>" is letters, never the control token."""
        text = well_formed(text)
        ids = self._plain_ids(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # Tokenizers split the tokens they call special; some templates are built from others.
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

    def _heard_ids(self, turn: str) -> list[int]:
        if self.hears_exactly and isinstance(turn, Utterance) and turn.token_ids is not None:
            return list(turn.token_ids)
        return self._text_ids(turn)

    def _literal_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def _begin_ids(self) -> list[int]:
        """What the tokenizer puts before a text of its own accord, for instance a BOS token."""
        ids = list(self.tokenizer("", add_special_tokens=True).input_ids)
        return ids[:1] if ids and ids[0] == self.tokenizer.bos_token_id else []

    def _first_id(self) -> int:
        begin, ends = self.tokenizer.bos_token_id, sorted(_end_ids(self.tokenizer))
        return int(begin) if begin is not None else (ends or [0])[0]

    def _find_end_id(self) -> int | None:
        """Return the token that ends what the side says; None if there is none."""
        ends = sorted(_end_ids(self.tokenizer))
        if self.chat:
            # Many chat models end a turn with another token than the tokenizer's end of text.
            after_own = self._literal_ids(self._literals(("user", "assistant", "user"))[2])
            if after_own and after_own[0] in self._control_ids:
                return after_own[0]
        return ends[0] if ends else None

    def _shows(self, roles: tuple[str, ...]) -> bool:
        try:
            self._literals(roles)
        except ConfigurationError:
            return False
        return True

    def _literals(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        """Return the template's own text around the contents of messages with these roles."""
        if roles not in self._skeletons:
            self._skeletons[roles] = _skeleton(self.tokenizer, roles)
        return self._skeletons[roles]


def window_of(model_config: Any) -> int | None:
    """Return how many tokens a model can read and write; None if nothing sets a limit."""
    config = model_config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def same_vocabulary(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether ids of one tokenizer mean the same to the other."""
    return a is b or a.get_vocab() == b.get_vocab()


def _join(separator: str, *parts: str | None) -> str:
    return separator.join(str(part) for part in parts if part)


def _end_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    ends = tokenizer.eos_token_id
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, list) else {int(ends)}


@lru_cache(maxsize=16)
def _newline_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(index for index in range(len(tokenizer)) if "\n" in tokenizer.decode([index]))


_MARK = "ASTRA{}SLOT"


def _skeleton(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> tuple[str, ...]:
    """Return the template's own text around the contents of messages with these roles.

    The template is rendered once with a mark in the place of each content and cut at the marks, so
    it never sees a word that a model said.
    """
    name = tokenizer.name_or_path or "this tokenizer"
    marks = [_MARK.format(index) for index in range(len(roles))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ConfigurationError(
            f"the chat template of {name} refuses messages of the roles {list(roles)}: {error}. "
            "Use chat=False, or another template."
        ) from error
    # The capture keeps the marks: each must be there, once, in order.
    pieces = re.split(f"({'|'.join(marks)})", str(text))
    if pieces[1::2] != marks:
        raise ConfigurationError(
            f"the chat template of {name} does not show each message of the roles {list(roles)} "
            "once and in order. Use chat=False, or a template that does."
        )
    return tuple(pieces[0::2])


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that structure what a model reads, and that no text may contain."""
    template = str(tokenizer.chat_template or "")
    return frozenset(
        index
        for index, token in tokenizer.added_tokens_decoder.items()
        if (token.special or (token.content.strip() and token.content in template))
        # What stands for unknown letters is in any text.
        and index != tokenizer.unk_token_id
    )


def _size(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)


def _cut(pieces: list[_Piece], budget: int) -> list[_Piece]:
    """Shorten the longest text from its left until all fits; empty if nothing would be left."""
    while (excess := _size(pieces) - budget) > 0:
        longest = max(
            (piece for piece in pieces if piece.kind != "literal"),
            key=lambda piece: len(piece.ids),
            default=None,
        )
        # One token must stay, so that the model is asked something at all.
        if longest is None or len(longest.ids) <= 1:
            return []
        longest.ids = longest.ids[min(excess, len(longest.ids) - 1) :]
    return pieces


def _assemble(pieces: Sequence[_Piece], dropped: int) -> Rendered:
    ids: list[int] = []
    heard = (0, 0)
    for piece in pieces:
        if piece.kind == "heard":
            heard = (len(ids), len(ids) + len(piece.ids))
        ids.extend(piece.ids)
    return Rendered(tuple(ids), heard, dropped)
