"""Pieces of a prompt: texts and sampled token ids, by the side that they are from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Side = Literal["attacker", "target"]
"""The side whose model reads a prompt; its own turns have the assistant role."""


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
class Piece:
    """Part of a prompt from one source.

    Attributes:
        kind: The template, instructions, the other side's turns, or the side's own turns.
        text: Its text; None if it is sampled ids.
        ids: Its token ids; those of a text are set when the whole prompt is tokenised.
    """

    kind: Literal["literal", "text", "other", "own"]
    text: str | None = None
    ids: list[int] = field(default_factory=list)


@dataclass
class Message:
    """A message of a chat.

    Attributes:
        role: Its role.
        pieces: The parts of its content.
        as_sampled: Whether the text before it is that of the prompt after which it was sampled.
    """

    role: Literal["system", "user", "assistant"]
    pieces: list[Piece] = field(default_factory=list)
    as_sampled: bool = False

    def stripped(self, start: bool, end: bool) -> list[Piece]:
        """Return the pieces as a template shows them that strips white space."""
        pieces = list(self.pieces)
        if start and pieces and pieces[0].text is not None:
            pieces[0] = replace(pieces[0], text=pieces[0].text.lstrip())
        if end and pieces and pieces[-1].text is not None:
            pieces[-1] = replace(pieces[-1], text=pieces[-1].text.rstrip())
        return pieces


def size(pieces: Sequence[Piece]) -> int:
    """Return the number of tokens."""
    return sum(len(piece.ids) for piece in pieces)


def truncate(pieces: list[Piece], budget: int) -> list[Piece]:
    """Left-truncate the longest text until all pieces fit; empty if that is impossible."""
    while (excess := size(pieces) - budget) > 0:
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


def assemble(pieces: Sequence[Piece], dropped: int) -> RenderedPrompt:
    """Return the prompt of pieces; `dropped` is the number of turns that were left out."""
    ids: list[int] = []
    last_turn = (0, 0)
    for piece in pieces:
        if piece.kind == "other":
            last_turn = (len(ids), len(ids) + len(piece.ids))
        ids.extend(piece.ids)
    return RenderedPrompt(tuple(ids), last_turn, dropped)
