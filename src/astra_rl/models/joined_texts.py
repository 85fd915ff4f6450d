"""Tokenisation of texts from several sources that are read as one text.

A chat template and the messages in it are one text to a tokenizer: SentencePiece joins the space
after ``[INST]`` with the first word of the message, and puts a space before a text only where it
begins. So the parts are joined first, tokenised once, and each token is assigned to its part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from astra_rl.models.chat_template import control_ids

_ANCHOR = "\n"
"""Text before a text that does not begin here; tokenizers keep it in tokens of its own."""

_KEPT = 1024
"""Number of texts whose token ids are kept: those of one training step, not of a whole run."""


class Part(NamedTuple):
    """A part of a text.

    Attributes:
        text: Its characters.
        trusted: Whether control tokens in it are control tokens, as in a template.
    """

    text: str
    trusted: bool = False


class _Token(NamedTuple):
    id: int
    start: int
    end: int


class PartsTokenizer:
    """Tokenises a text that consists of parts, as the tokenizer reads it as a whole.

    A control token is recognised only within one trusted part. One in, or formed with, an untrusted
    part is split into ordinary tokens; one of a single character is left out.

    The latest results are kept: the attacks at one context are generated and scored, each with the
    same prompt.

    Args:
        tokenizer: The tokenizer, which must not be changed afterwards. Without offsets (a slow
            one), parts are tokenised one by one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.control_ids = control_ids(tokenizer)
        self._controls = _control_strings(tokenizer, self.control_ids)
        self._ids = lru_cache(maxsize=_KEPT)(self._tokenize)

    def __call__(
        self, parts: Sequence[Part], *, continues: bool = False
    ) -> tuple[tuple[int, ...], ...]:
        """Return the token ids of each part.

        A token that covers characters of several parts belongs to the last untrusted one of them.

        Args:
            parts: The parts, in order.
            continues: Whether other tokens precede the text, so that it does not begin here.
        """
        return self._ids(tuple(parts), continues)

    def _tokenize(self, given: tuple[Part, ...], continues: bool) -> tuple[tuple[int, ...], ...]:
        tokenizer, controls = self.tokenizer, self._controls
        parts = [Part(_without_single_characters(part, controls), part.trusted) for part in given]
        ids: list[list[int]] = [[] for _ in parts]
        if not getattr(tokenizer, "is_fast", False):
            for index, part in enumerate(parts):
                after = continues or any(ids)
                ids[index] += [token.id for token in _tokens(tokenizer, [part], controls, after)]
            return tuple(map(tuple, ids))
        spans = _spans(parts)
        index = 0
        for token in _tokens(tokenizer, parts, controls, continues):
            is_control = token.id in self.control_ids
            first, last = spans[index]
            if not first <= token.start < token.end <= last:  # most are of the part before them
                index = _part_of(token, spans, parts, is_control=is_control)
            if parts[index].trusted or not is_control:
                ids[index].append(token.id)
        return tuple(map(tuple, ids))


def _tokens(
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[Part],
    controls: Sequence[str],
    continues: bool,
) -> list[_Token]:
    """Tokenise joined parts, cut inside the control tokens that untrusted text contains."""
    text = "".join(part.text for part in parts)
    cuts = [0, *_cuts(text, parts, controls), len(text)]
    tokens: list[_Token] = []
    for start, end in pairwise(cuts):
        for token in _encode(tokenizer, text[start:end], continues or start > 0):
            if start:
                token = _Token(token.id, token.start + start, token.end + start)
            if token.start == token.end and tokens:  # offsets may leave out white space
                token = token._replace(start=min(tokens[-1].end, token.start))
            tokens.append(token)
    return tokens


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, continues: bool) -> list[_Token]:
    if not text:
        return []
    if continues and _adds_space(tokenizer):
        anchor = _plain(tokenizer, _ANCHOR)
        tokens = _plain(tokenizer, _ANCHOR + text)
        if [each.id for each in tokens[: len(anchor)]] == [each.id for each in anchor]:
            size = len(_ANCHOR)
            return [
                _Token(each.id, max(0, each.start - size), max(0, each.end - size))
                for each in tokens[len(anchor) :]
            ]
    return _plain(tokenizer, text)


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[_Token]:
    if not getattr(tokenizer, "is_fast", False):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return [_Token(int(each), 0, len(text)) for each in ids]
    encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        _Token(index, start, end)
        for index, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    ]


@lru_cache(maxsize=16)
def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer reads a text that begins here as if a space preceded it."""
    anchor = _plain(tokenizer, _ANCHOR)
    inside = _plain(tokenizer, f"{_ANCHOR}a")[len(anchor) :]
    return [each.id for each in inside] != [each.id for each in _plain(tokenizer, "a")]


def _control_strings(tokenizer: PreTrainedTokenizerBase, known: Collection[int]) -> tuple[str, ...]:
    """Return the texts that the tokenizer would read as control tokens, the longest first."""
    contents = {
        token.content
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.content and (token.special or index in known)
    }
    return tuple(sorted(contents, key=lambda each: (-len(each), each)))


def _without_single_characters(part: Part, controls: Sequence[str]) -> str:
    if part.trusted:
        return part.text
    for each in controls:
        if len(each) == 1:
            part = part._replace(text=part.text.replace(each, ""))
    return part.text


def _cuts(text: str, parts: Sequence[Part], controls: Sequence[str]) -> list[int]:
    """Return the places at which a text is cut so that no control token in it is recognised.

    Occurrences within one trusted part are those of the template, and are not cut.
    """
    if not controls or all(part.trusted for part in parts):
        return []
    spans = _spans(parts)
    seams = {start for start, _ in spans}
    cuts = set()
    for control in controls:
        start = text.find(control)
        while start >= 0:
            end = start + len(control)
            inside = any(
                part.trusted and first <= start and end <= last
                for part, (first, last) in zip(parts, spans, strict=True)
            )
            if not inside:
                cuts.add(min((each for each in seams if start < each < end), default=start + 1))
            start = text.find(control, start + 1)
    return sorted(cut for cut in cuts if 0 < cut < len(text))


def _spans(parts: Sequence[Part]) -> list[tuple[int, int]]:
    spans, at = [], 0
    for part in parts:
        spans.append((at, at + len(part.text)))
        at += len(part.text)
    return spans


def _part_of(
    token: _Token,
    spans: Sequence[tuple[int, int]],
    parts: Sequence[Part],
    *,
    is_control: bool,
) -> int:
    """Return the index of the part that a token belongs to."""
    end = max(token.end, token.start + 1)
    touched = [
        index
        for index, (first, last) in enumerate(spans)
        if max(first, token.start) < min(last, end)
    ]
    if not touched:  # a token without characters, at the end of the text
        return max(index for index, (first, last) in enumerate(spans) if first < last)
    if is_control:
        # The white space that a control token strips may be of the text after it.
        return next((index for index in touched if parts[index].trusted), touched[0])
    untrusted = [index for index in touched if not parts[index].trusted]
    return (untrusted or touched)[-1]
