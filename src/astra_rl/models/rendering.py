"""Rendering of conversations to prompt token ids, with or without a chat template.

Attacker and target have tokenizers of their own. Turns that a model sampled itself are inserted as
the exact token ids it sampled and are never re-tokenised. All text between them, of the template
and of the other model, is tokenised as one text, as a deployed model reads it; control tokens in
the text of a model are split into ordinary tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from astra_rl.agents.history import compacted
from astra_rl.core.messages import Dialogue, Tool
from astra_rl.core.reasoning import split_reply
from astra_rl.core.text import DEFAULT_BRIEF, Conversation, Utterance, written_text
from astra_rl.core.tool_calls import ParsedTurn
from astra_rl.errors import ConfigurationError
from astra_rl.infra.unicode import well_formed
from astra_rl.logging import logger
from astra_rl.models.chat_template import (
    ChatTemplate,
    SplitTemplate,
    end_ids,
    newline_ids,
)
from astra_rl.models.dialogues import check_dialogue, dialogue_parts, read_turn
from astra_rl.models.joined_texts import Part, PartsTokenizer
from astra_rl.models.pieces import Message, Piece, RenderedPrompt, Side, assemble, size, truncate
from astra_rl.models.positions import position_limit
from astra_rl.models.reading import ReadReply, ReplyReader
from astra_rl.models.template_check import difference_from_template

_HISTORY = ("user", "assistant", "user")
_WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"


class _Found(NamedTuple):
    parts: list[Part]
    at: int


def _split_at_last(parts: Sequence[Part], text: str, within: str) -> _Found | None:
    """Split the last part with a text that ends with another one; return the place of the latter.

    Both may be written as JSON, see `_spellings`.

    Args:
        parts: Parts of a prompt.
        text: What is looked for.
        within: The whole text whose last occurrence of `text` is meant.
    """
    forms = dict.fromkeys(zip(_spellings(within), _spellings(text), strict=True))
    for index in range(len(parts) - 1, -1, -1):
        part = parts[index]
        for whole, form in forms:
            first = -1 if part.trusted or not form else part.text.rfind(whole)
            if first >= 0:
                start = first + whole.rindex(form)
                end = start + len(form)
                halves = [
                    Part(part.text[:start]),
                    Part(part.text[start:end]),
                    Part(part.text[end:]),
                ]
                split = [*parts[:index], *halves, *parts[index + 1 :]]
                return _Found(split, index + 1)
    return None


def _spellings(text: str) -> list[str]:
    """Return a text as it is, and as JSON writes it."""
    return [text, *(json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (False, True))]


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
        chat_template_kwargs: Further variables of the chat template, for instance
            ``{"enable_thinking": False}``.
        model_end_ids: End tokens of the model besides those of its tokenizer, see
            `vocabulary.model_end_ids`.

    Attributes:
        end_ids: Tokens that end a turn.
        stop_ids: Tokens that end generation: `end_ids`, and line breaks if `stop_at_newline`.
        template: The chat template; None for plain text.
        supports_system: Whether the template renders a system message.

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
        chat_template_kwargs: Mapping[str, Any] | None = None,
        model_end_ids: Iterable[int] = (),
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
        self.template = ChatTemplate.of(tokenizer, chat_template_kwargs) if self.chat else None
        self._splits: dict[tuple[str, ...], SplitTemplate] = {}
        self._tokenize = PartsTokenizer(tokenizer)
        self.end_ids = end_ids(tokenizer) | set(model_end_ids)
        self._end_id = self._find_end_id()
        if self._end_id is not None:
            self.end_ids.add(self._end_id)
        self.stop_ids = self.end_ids | (newline_ids(tokenizer) if stop_at_newline else set())
        self.supports_system = self.chat and self._supports_roles(
            ("system", "user", "assistant", "user")
        )
        self._reply_opening, self._past_opening = self._find_openings()
        space = self._past_opening.removeprefix(self._reply_opening)
        self._space = "" if space.strip() else space
        self.reader = ReplyReader(self.template, self._reply_opening) if self.template else None
        if self.template is not None:
            self._compare_with(self.template)

    def render(self, conversation: Conversation, *, reserve: int) -> RenderedPrompt:
        """Return the prompt for the side's next turn.

        An attacker of an agent reads what `astra_rl.agents.history.compacted` keeps. A conversation
        that exceeds the context window is truncated: the oldest turns are dropped first, then the
        beginning of the longest remaining text. If nothing remains, `ids` is empty.

        Args:
            conversation: The conversation so far.
            reserve: Number of tokens of the context window reserved for generation.

        Raises:
            ConfigurationError: It is a `Dialogue` and there is no chat template, or the template
                rejects it.
        """
        if isinstance(conversation, Dialogue):
            return self._dialogue_prompt(conversation, reserve)
        if self.side == "attacker":
            conversation = compacted(conversation)
        pieces = self._pieces(conversation)
        if self.window is None or size(pieces) <= self.window - reserve:
            return assemble(pieces, 0)
        dropped = 0
        while len(conversation.turns) > 2 and size(pieces) > self.window - reserve:
            conversation = self._without_oldest_exchange(conversation)
            pieces = self._pieces(conversation)
            dropped += 2
        return assemble(truncate(pieces, self.window - reserve), dropped)

    def _dialogue_prompt(self, dialogue: Dialogue, reserve: int) -> RenderedPrompt:
        """Return the prompt of an agent; empty if it exceeds the context window.

        Nothing is left out: without its first messages an agent has another task.
        """
        parts = dialogue_parts(check_dialogue(self.template, self.side), dialogue)
        ids = tuple(chain.from_iterable(self._tokenize(parts)))
        fits = self.window is None or len(ids) <= self.window - reserve
        return RenderedPrompt(ids if fits else ())

    def place_in_dialogue(
        self, dialogue: Dialogue, text: str, within: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the token ids before a text, and those of the text.

        A token that covers the end of what precedes the text belongs to the text. Without a chat
        template the dialogue is read as a transcript.

        Args:
            dialogue: What a side reads.
            text: The text; white space around it is left out.
            within: The message or description with the text, whose last occurrence there is meant:
                a short text may stand in other messages, too.

        Returns:
            The ids; both are empty if the text is not shown there, or if they exceed the window.

        Raises:
            ConfigurationError: The template rejects the dialogue.
        """
        parts = (
            [Part(str(dialogue))]
            if self.template is None
            else dialogue_parts(self.template, dialogue)
        )
        text, within = text.strip(), within.strip()
        found = _split_at_last(parts, text, within) if text in within else None
        if found is None:
            return (), ()
        ids = self._tokenize(found.parts)
        before = tuple(chain.from_iterable(ids[: found.at]))
        fits = self.window is None or len(before) + len(ids[found.at]) <= self.window
        return (before, ids[found.at]) if fits else ((), ())

    def utterance_ids(self, utterance: str, *, opens: bool = False) -> tuple[int, ...]:
        """Return the token ids of one of the side's own turns: the sampled ones, if known.

        Text without ids is tokenised as it is read after a prompt and, for a chat model, terminated
        with the end token. Private reasoning is part of an own turn.

        Args:
            utterance: The turn.
            opens: Whether it begins a plain text, because the prompt is empty.
        """
        sampled = self._sampled_ids(utterance)
        if sampled is not None:
            return tuple(sampled)
        text = well_formed(written_text(utterance))
        if not self.chat:
            return self._tokenize([Part(text)], continues=not opens)[0]
        # In "[/INST] Hello", the space is of the first token that the model says.
        said = [Part(self._space, trusted=True), Part(text)]
        opening = Part(self._reply_opening, trusted=True)
        before, *ids = self._tokenize([opening, *said])
        if before != self._tokenize([opening])[0]:
            ids = [*self._tokenize(said, continues=True)]  # a token of both was made
        end = [] if self._end_id is None else [self._end_id]
        return (*chain.from_iterable(ids), *end)

    def begins_text(self, conversation: Conversation) -> bool:
        """Whether the side's next turn begins a plain text: nothing precedes it."""
        nothing = not (self._instructions(conversation) or conversation.prompt)
        return not self.chat and nothing and not any(conversation.turns)

    def token_ends(self, attack: str) -> list[int]:
        """Return the end offset, in characters, of each token of one of the side's own turns."""
        ids, length = self.utterance_ids(attack), len(written_text(attack))
        whole = self._decoded(ids)
        # Reasoning and white space before the attack are not part of its text.
        stripped = max(0, whole.rfind(written_text(attack))) if self.chat else 0
        ends = [0]
        for count in range(1, len(ids) + 1):
            # Decoded cumulatively, because a character may consist of several tokens.
            prefix = self._decoded(ids[:count])
            ends.append(max(ends[-1], min(length, len(prefix) - stripped)))
        return ends[1:]

    def reads_like(self, other: ConversationRenderer) -> bool:
        """Whether `read` returns the same for the same token ids, given equal vocabularies."""
        return (self.chat, self.stop_ids, self.end_ids, self._reading) == (
            other.chat,
            other.stop_ids,
            other.end_ids,
            other._reading,
        )

    @property
    def _reading(self) -> object:
        return self.reader and self.reader.rules

    def read(self, token_ids: Sequence[int], *, opens: bool = False) -> ReadReply:
        """Return the answer and the reasoning in a sampled reply; for the arguments see `decode`.

        Plain text has no reasoning: all of it is the answer.
        """
        if self.reader is None or not self.reader.is_active:
            text = self.decode(token_ids, opens=opens)
            return ReadReply(text, None, tuple(token_ids), is_whole=True)
        reply = self.reader.read(self._without_end(token_ids))
        if reply.answer is None:
            return reply
        text = self.decode(token_ids) if reply.is_whole else reply.answer.strip()
        return replace(reply, answer=text)

    def read_calls(self, token_ids: Sequence[int], tools: Sequence[Tool]) -> ParsedTurn:
        """Return the text and the calls of tools in a sampled message of an agent."""
        # Marks of calls are control tokens in some vocabularies.
        text = str(
            self.tokenizer.decode(list(self._without_end(token_ids)), skip_special_tokens=False)
        )
        answer = split_reply(text).answer or ""
        return read_turn(self.tokenizer, answer.strip(), tools)

    def decode(self, token_ids: Sequence[int], *, opens: bool = False) -> str:
        """Return sampled token ids as text, without the end token and other control tokens.

        Args:
            token_ids: The sampled tokens.
            opens: Whether they begin a plain text; a space before the first word is then left out.
        """
        ids = list(token_ids)
        ended_line = False
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        elif ids and ids[-1] in self.stop_ids:
            ended_line = True
        text = self._decoded(ids, opens=opens)
        if ended_line:
            text = text.partition("\n")[0]  # a token with a line break may contain other characters
        return text.strip() if self.chat else text

    def _decoded(self, ids: Sequence[int], *, opens: bool = False) -> str:
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        said = next((each for each in ids if each not in self._tokenize.control_ids), None)
        if said is None or opens or text.startswith(" "):
            return text
        # SentencePiece marks the space before a word, and leaves it out where a text begins.
        first = str(self.tokenizer.convert_ids_to_tokens(int(said)))
        return f" {text}" if first.startswith(_WORD_START) else text

    def _pieces(self, conversation: Conversation) -> list[Piece]:
        return (
            self._chat_pieces(conversation) if self.chat else self._plain_text_pieces(conversation)
        )

    def _plain_text_pieces(self, conversation: Conversation) -> list[Piece]:
        opening = _join("", self._instructions(conversation), conversation.prompt)
        begin = list(self._begin_ids)
        if not begin and not opening:
            begin = [self._first_id()]  # the prompt must have at least one token
        pieces = [Piece("text", opening)]
        for index, turn in enumerate(conversation.turns):
            own = self._is_own(index)
            ids = self._sampled_ids(turn) if own else self._heard_ids(turn)
            while ids and ids[-1] in self.end_ids:
                ids.pop()  # an end token inside the prompt would end the text
            kind: Literal["own", "other"] = "own" if own else "other"
            text = written_text(turn) if own else turn
            pieces.append(Piece(kind, text) if ids is None else Piece(kind, ids=ids))
        self._set_ids(pieces)
        return [Piece("literal", ids=begin), *pieces]

    def _chat_pieces(self, conversation: Conversation) -> list[Piece]:
        messages = self._messages(conversation)
        split = self._split(tuple(message.role for message in messages))
        pieces: list[Piece] = []
        for place, index in enumerate(split.order):
            message, literal = messages[index], split.literals[place]
            if message.as_sampled and literal.endswith(self._past_opening):
                literal = literal.removesuffix(self._past_opening) + self._reply_opening
            pieces.append(Piece("literal", literal))
            pieces.extend(message.stripped(*split.strips[index]))
        pieces.append(Piece("literal", split.literals[-1]))
        self._set_ids(pieces)
        for own, literal_piece in pairwise(pieces):
            if own.kind == "own" and own.text is None and own.ids:
                if literal_piece.ids and own.ids[-1] == literal_piece.ids[0]:
                    own.ids.pop()  # the end token was sampled; the template has it too
                elif own.ids[-1] in self.stop_ids:
                    own.ids.pop()  # replaced by the end of turn of the template
        return pieces

    def _set_ids(self, pieces: Sequence[Piece]) -> None:
        """Set the ids of all pieces with text; those without sampled ids between them at once."""
        run: list[Piece] = []
        continues = False
        for piece in [*pieces, None]:
            if piece is not None and piece.text is not None:
                run.append(piece)
                continue
            parts = [
                Part(well_formed(each.text or ""), trusted=each.kind == "literal") for each in run
            ]
            ids = self._tokenize(parts, continues=continues)
            for each, tokens in zip(run, ids, strict=True):
                each.ids = list(tokens)
            continues = continues or any(ids) or bool(piece and piece.ids)
            run = []

    def _messages(self, conversation: Conversation) -> list[Message]:
        messages: list[Message] = []
        instructions = self._instructions(conversation)
        if self.side == "target" and instructions and self.supports_system:
            messages.append(Message("system", [Piece("text", instructions)]))
            instructions = ""
        first = _join("\n\n", instructions, conversation.prompt)
        if self.side == "attacker" or not conversation.turns:
            messages.append(Message("user", [Piece("text", first)]))
        for index, turn in enumerate(conversation.turns):
            if self._is_own(index):
                messages.append(self._own_message(turn))
                continue
            message = Message("user")
            if index == 0 and first and self.side == "target":
                glue = "\n" if conversation.prompt else "\n\n"
                message.pieces.append(Piece("text", first + glue))
            message.pieces.append(Piece("other", turn.strip()))
            messages.append(message)
        return messages

    def _own_message(self, turn: str) -> Message:
        """Return a past answer: the sampled ids, without reasoning if the template drops it."""
        ids = self._sampled_ids(turn)
        as_sampled = bool(self._space)
        if ids and self.reader is not None and self.reader.is_active:
            reply = self.reader.read(self._without_end(ids))
            if not reply.is_whole:
                as_sampled = self.reader.keeps_reasoning
                answer = reply.answer_ids if reply.answer is not None else ()
                ids = ids if as_sampled else None if answer is None else list(answer)
        piece = Piece("own", written_text(turn)) if ids is None else Piece("own", ids=ids)
        return Message("assistant", [piece], as_sampled=as_sampled and ids is not None)

    def _without_end(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids[:-1] if ids and ids[-1] in self.end_ids else ids)

    def _instructions(self, conversation: Conversation) -> str:
        if self.side == "target":
            return conversation.system or ""
        return conversation.brief or (DEFAULT_BRIEF if self.chat else "")

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

    def _compare_with(self, template: ChatTemplate) -> None:
        """Warn if prompts are not those of the template."""
        found = difference_from_template(
            self.tokenizer,
            template,
            side=self.side,
            with_system=self.supports_system,
            window=self.window,
            utterance_ids=self.utterance_ids,
            prompt_ids=lambda conversation: self.render(conversation, reserve=0).ids,
        )
        if found is not None:
            _warn_of_difference(self.side, template.name, found)

    def _is_own(self, turn_index: int) -> bool:
        return (turn_index % 2 == 0) == (self.side == "attacker")

    def _sampled_ids(self, turn: str) -> list[int] | None:
        """Return the ids of an own turn as they were sampled; None if it is known as text only."""
        if not self.reuse_own_ids or not isinstance(turn, Utterance) or turn.token_ids is None:
            return None
        return list(turn.token_ids)

    def _heard_ids(self, turn: str) -> list[int] | None:
        if not self.reuse_other_ids or not isinstance(turn, Utterance) or turn.token_ids is None:
            return None
        if written_text(turn) != turn or turn.reasoning is not None:
            return None  # they are those of the whole output, with private reasoning
        return list(turn.token_ids)

    @cached_property
    def _begin_ids(self) -> list[int]:
        """Tokens that the tokenizer prepends to a text, for example BOS."""
        ids = list(self.tokenizer("", add_special_tokens=True).input_ids)
        return ids[:1] if ids and ids[0] == self.tokenizer.bos_token_id else []

    def _first_id(self) -> int:
        begin, ends = self.tokenizer.bos_token_id, sorted(end_ids(self.tokenizer))
        return int(begin) if begin is not None else (ends or [0])[0]

    def _find_end_id(self) -> int | None:
        """Return the token that ends the side's turns; None if there is none."""
        ends = sorted(end_ids(self.tokenizer)) or sorted(self.end_ids)
        if self.template is not None:
            # Many chat models end a turn with another token than EOS, and some end the last answer
            # with another token than the turns before it.
            for roles, reply in ((("user", "assistant"), False), (_HISTORY, True)):
                try:
                    after = self.template.split(roles, reply=reply).around(1)[1]
                except ConfigurationError:
                    if reply:
                        raise
                    continue
                for token in self._tokenize([Part(after.lstrip(), True)])[0][:1]:
                    if token in self._tokenize.control_ids:
                        return token
        return ends[0] if ends else None

    def _find_openings(self) -> tuple[str, str]:
        """Return the text of the template before a reply, and before replies in the past."""
        if not self.chat:
            return "", ""
        return self._split(("user",)).literals[-1], self._split(_HISTORY).around(1)[0]

    def _supports_roles(self, roles: tuple[str, ...]) -> bool:
        try:
            self._split(roles)
        except ConfigurationError:
            return False
        return True

    def _split(self, roles: tuple[str, ...]) -> SplitTemplate:
        """Return the template around the contents of messages with these roles."""
        assert self.template is not None
        if roles not in self._splits:
            self._splits[roles] = self.template.split(roles)
        return self._splits[roles]


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


@lru_cache(maxsize=64)
def _warn_of_difference(side: Side, name: str, difference: str) -> None:
    """Log once per model that its prompts are not those of its template."""
    logger.warning(
        "prompts of the %s differ from apply_chat_template of %s: %s. Results are of prompts that "
        "a deployed model does not read",
        side,
        name,
        difference,
    )
