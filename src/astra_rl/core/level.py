"""Where in their episodes the rows of a batched reward stand.

A reward is asked about many turns at once, of many episodes. What a turn cannot say itself (which
others are its siblings, whether the conversation ends with it) the environment says here, so that a
reward never depends on which episodes happen to share a batch.
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
        siblings: Rows of equal number are siblings: alternatives from one parent of one graph.
        last: Whether the conversation ends with this turn.
        depth: Turns that the episodes played before this one; None if nobody knows, and then all
            turns of a context count as played.
    """

    siblings: tuple[int, ...]
    last: tuple[bool, ...]
    depth: int | None = None

    def groups(self) -> list[list[int]]:
        """Return the rows of each set of siblings, in order of their first rows."""
        groups: dict[int, list[int]] = {}
        for row, group in enumerate(self.siblings):
            groups.setdefault(group, []).append(row)
        return list(groups.values())


_level: ContextVar[Level | None] = ContextVar("level", default=None)


@contextlib.contextmanager
def tree_level(level: Level) -> Iterator[None]:
    """Say where the rows stand of the rewards that are computed inside the block."""
    token = _level.set(level)
    try:
        yield
    finally:
        _level.reset(token)


def current_level(contexts: Sequence[str]) -> Level:
    """Return the enclosing `tree_level`.

    Outside of any, turns of equal contexts are siblings and each is the last of its conversation.

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
            f"a reward was asked about {len(contexts)} turns inside a tree level of "
            f"{len(level.siblings)}. Ask about all turns of a level in one call."
        )
    return level
