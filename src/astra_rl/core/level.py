"""Position of the turns of a batch in their episodes.

A reward is computed for the turns of many episodes at once. The environment states here which turns
are siblings and which end their conversation, so that a reward does not depend on which episodes
share a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from astra_rl.core.text import context_key
from astra_rl.errors import ContractError


@dataclass(frozen=True)
class Level:
    """One level of several trees, row by row.

    Attributes:
        siblings: Group number of each row; rows of one number are children of one parent.
        last: Whether each turn is the last of its conversation.
        depth: Number of earlier turns of the episodes; None if unknown, and then all turns of a
            context belong to the episode.
    """

    siblings: tuple[int, ...]
    last: tuple[bool, ...]
    depth: int | None = None

    def groups(self) -> list[list[int]]:
        """Return the rows of each group of siblings, in order of their first rows."""
        groups: dict[int, list[int]] = {}
        for row, group in enumerate(self.siblings):
            groups.setdefault(group, []).append(row)
        return list(groups.values())


_level: ContextVar[Level | None] = ContextVar("level", default=None)


@contextlib.contextmanager
def tree_level(level: Level) -> Iterator[None]:
    """Set the level of the rewards that are computed inside the block."""
    token = _level.set(level)
    try:
        yield
    finally:
        _level.reset(token)


def current_level(contexts: Sequence[str]) -> Level:
    """Return the enclosing `tree_level`.

    Without one, turns of equal contexts are siblings and each is the last of its conversation.

    Raises:
        ContractError: The block was opened for another number of rows.
    """
    level = _level.get()
    if level is None:
        known: dict[object, int] = {}
        numbers = [known.setdefault(context_key(each), len(known)) for each in contexts]
        return Level(tuple(numbers), (True,) * len(numbers))
    if len(level.siblings) != len(contexts):
        raise ContractError(
            f"a reward was called with {len(contexts)} turns inside a tree level of "
            f"{len(level.siblings)}. Call it with all turns of the level."
        )
    return level
