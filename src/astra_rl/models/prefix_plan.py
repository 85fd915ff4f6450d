"""Plan of a shared-prefix forward pass: which segments of which sequences are computed together.

Pure functions on lists of token ids; `astra_rl.models.forward` runs the plan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MIN_SHARED_TOKENS = 8
"""Minimum length of a shared prefix. Recomputing a shorter one is cheaper than sharing it."""
MAX_LEVELS = 8
"""Largest number of levels of a tree: each is a forward pass of its own."""


@dataclass(frozen=True)
class PrefixGroup:
    """Rows that begin with the same `length` tokens."""

    length: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """Segments that are computed in one forward pass.

    Attributes:
        segments: Token ids of each segment.
        starts: Position of each segment's first token in its sequence.
        parents: For each segment, the index of the segment of the previous level that it continues;
            None in the first level.
    """

    segments: list[list[int]]
    starts: list[int]
    parents: list[int] | None

    @property
    def width(self) -> int:
        """Number of positions that the level adds to the key-value cache, padding included."""
        return max(map(len, self.segments))


def shared_prefix_groups(
    sequences: Sequence[Sequence[int]], max_shared: Sequence[int]
) -> list[PrefixGroup]:
    """Group rows by a common prefix.

    Greedy over the sorted sequences: a row joins the previous group if it shares at least
    `MIN_SHARED_TOKENS` tokens and half of the group's current prefix with it.

    Args:
        sequences: Token ids of each row.
        max_shared: Maximum number of tokens of each row that may be shared.
    """
    order = sorted(range(len(sequences)), key=lambda row: tuple(sequences[row]))
    groups: list[PrefixGroup] = []
    for row in order:
        if groups:
            last = groups[-1]
            first = sequences[last.rows[0]]
            common = _common_length(first, sequences[row], min(last.length, max_shared[row]))
            if common >= max(MIN_SHARED_TOKENS, last.length / 2):
                groups[-1] = PrefixGroup(common, (*last.rows, row))
                continue
        groups.append(PrefixGroup(max_shared[row], (row,)))
    return groups


def _common_length(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    limit = min(limit, len(a), len(b))
    for index in range(limit):
        if a[index] != b[index]:
            return index
    return limit


@dataclass(frozen=True)
class Tree:
    """Rows as paths in a tree of segments.

    Attributes:
        levels: The segments.
        paths: For each row, the index of its segment in the first level, in the second, and so on;
            its last segment may be longer than the row.
    """

    levels: list[Level]
    paths: list[tuple[int, ...]]

    @property
    def tokens(self) -> int:
        """Number of tokens that are computed, padding included."""
        return sum(len(level.segments) * level.width for level in self.levels)

    def places(self, row: int, start: int, stop: int) -> Iterator[int]:
        """Yield where positions `start` to `stop` of a row stand in the states of all levels.

        The states of a level are (segments, width), flattened; those of all levels are joined.
        """
        offset = 0
        for level, segment in zip(self.levels, self.paths[row], strict=False):
            first = level.starts[segment]
            begin, end = max(start, first), min(stop, first + len(level.segments[segment]))
            base = offset + segment * level.width - first
            yield from range(base + begin, base + end)
            offset += len(level.segments) * level.width


def plan_tree(sequences: Sequence[Sequence[int]]) -> Tree:
    """Plan the tree in which a beginning that rows share is computed once.

    Turns of a conversation whose other turns are rows too are computed once as well. Rows whose
    common beginning is new for fewer than `MIN_SHARED_TOKENS` tokens do not share it. If padding
    makes the tree larger than the rows themselves, each row is computed alone.

    Args:
        sequences: Token ids of each row; none may be empty.
    """
    rows = [tuple(sequence) for sequence in sequences]
    ordered = sorted(set(rows))
    # A row with which another one begins follows the other's path. Sorted, it stands before it.
    following = zip(ordered, [*ordered[1:], ()], strict=True)
    whole = [row for row, after in following if after[: len(row)] != row]
    tree = _Branches()
    tree.split(whole, 0)
    levels = [
        Level(segments, starts, parents if depth else None)
        for depth, (segments, starts, parents) in enumerate(tree.levels)
    ]
    paths = [
        path[: sum(level.starts[at] < len(row) for level, at in zip(levels, path, strict=False))]
        for row in rows
        for path in [tree.paths[whole[bisect_left(whole, row)]]]
    ]
    return min(plan_alone(rows), Tree(levels, paths), key=lambda each: each.tokens)


def plan_alone(sequences: Sequence[Sequence[int]]) -> Tree:
    """Plan the tree in which rows share nothing."""
    level = Level([list(sequence) for sequence in sequences], [0] * len(sequences), None)
    return Tree([level], [(row,) for row in range(len(sequences))])


class _Branches:
    """Segments of a tree by level, as `Level` has them, and the path of each row."""

    def __init__(self) -> None:
        self.levels: list[tuple[list[list[int]], list[int], list[int]]] = []
        self.paths: dict[tuple[int, ...], tuple[int, ...]] = {}

    def split(
        self, rows: Sequence[tuple[int, ...]], start: int, path: tuple[int, ...] = ()
    ) -> None:
        """Add the segments of sorted rows that follow their common beginning of `start` tokens."""
        groups: list[list[tuple[int, ...]]] = []
        for row in rows:
            known = _common_length(groups[-1][0], row, len(row)) if groups else 0
            if known - start >= MIN_SHARED_TOKENS and len(path) < MAX_LEVELS - 1:
                groups[-1].append(row)
            else:
                groups.append([row])
        for group in groups:
            first, last = group[0], group[-1]
            is_leaf = len(group) == 1
            stop = len(first) if is_leaf else _common_length(first, last, len(last))
            own = (*path, self._add(len(path), list(first[start:stop]), start, path))
            if is_leaf:
                self.paths[first] = own
            else:
                self.split(group, stop, own)

    def _add(self, depth: int, segment: list[int], start: int, path: tuple[int, ...]) -> int:
        if depth == len(self.levels):
            self.levels.append(([], [], []))
        segments, starts, parents = self.levels[depth]
        segments.append(segment)
        starts.append(start)
        parents.append(path[-1] if path else 0)
        return len(segments) - 1


def plan_levels(sequences: Sequence[Sequence[int]], max_shared: Sequence[int]) -> list[Level]:
    """Plan up to three levels: prefixes shared by prompts, the prompts, and each row's suffix.

    Levels that would share nothing are left out, so one level remains if no rows share a prefix.

    Args:
        sequences: Token ids of each row.
        max_shared: Maximum number of tokens of each row that may be shared.
    """
    prompts, prompt_of = distinct_prompts(sequences, max_shared)
    if len(prompts) == len(sequences) or min(map(len, prompts)) < MIN_SHARED_TOKENS:
        prompts = []
    # Prompts, or rows, with a common prefix such as the same instructions.
    units: Sequence[Sequence[int]] = prompts or sequences
    unit_limits = [len(prompt) for prompt in prompts] if prompts else max_shared
    groups = shared_prefix_groups(units, unit_limits)
    if len(groups) == len(units) or min(group.length for group in groups) < MIN_SHARED_TOKENS:
        groups = []

    levels: list[Level] = []
    starts = [0] * len(units)
    parents: list[int] | None = None
    if groups:
        prefixes = [list(units[group.rows[0]][: group.length]) for group in groups]
        levels.append(Level(prefixes, [0] * len(groups), None))
        parents = [0] * len(units)
        for index, group in enumerate(groups):
            for unit in group.rows:
                starts[unit], parents[unit] = group.length, index
    remainders = [list(unit[start:]) for unit, start in zip(units, starts, strict=True)]
    levels.append(Level(remainders, starts, parents))
    if prompts:
        levels.append(_suffix_level(sequences, prompts, prompt_of, prompt_of))
    return levels


def plan_levels_after_cache(
    cached_rows: Sequence[int],
    cached_lengths: Sequence[int],
    prompts: Sequence[tuple[int, ...]],
    prompt_of: Sequence[int],
    sequences: Sequence[Sequence[int]],
) -> list[Level]:
    """Plan the levels that continue cached prefixes.

    Args:
        cached_rows: For each prompt, the row of the cache that holds its prefix; -1 for none.
        cached_lengths: For each prompt, the number of its tokens that are cached.
        prompts: Distinct prompts, see `distinct_prompts`.
        prompt_of: For each sequence, the index of its prompt.
        sequences: Token ids of each row.
    """
    remainders = Level(
        [list(prompt[known:]) for prompt, known in zip(prompts, cached_lengths, strict=True)],
        list(cached_lengths),
        list(cached_rows),
    )
    if remainders.width == 0:
        parents = [cached_rows[index] for index in prompt_of]
        return [_suffix_level(sequences, prompts, prompt_of, parents)]
    return [remainders, _suffix_level(sequences, prompts, prompt_of, prompt_of)]


def distinct_prompts(
    sequences: Sequence[Sequence[int]], max_shared: Sequence[int]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return the distinct shareable prefixes (siblings of a tree have the same one).

    Returns:
        The prefixes in order of first occurrence, and for each sequence the index of its prefix.
    """
    index_of: dict[tuple[int, ...], int] = {}
    prompt_of = [
        index_of.setdefault(tuple(sequence[:limit]), len(index_of))
        for sequence, limit in zip(sequences, max_shared, strict=True)
    ]
    return list(index_of), prompt_of


def _suffix_level(
    sequences: Sequence[Sequence[int]],
    prompts: Sequence[tuple[int, ...]],
    prompt_of: Sequence[int],
    parents: Sequence[int],
) -> Level:
    """Plan the segments that follow each row's prompt."""
    starts = [len(prompts[index]) for index in prompt_of]
    suffixes = [list(sequence[start:]) for sequence, start in zip(sequences, starts, strict=True)]
    return Level(suffixes, starts, list(parents))
