"""Plan of a shared-prefix forward pass: which segments of which sequences are computed together.

Pure functions on lists of token ids; `astra_rl.models.forward` runs the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_SHARED_TOKENS = 8
"""Minimum length of a shared prefix. Recomputing a shorter one is cheaper than sharing it."""


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
    for index in range(limit):
        if a[index] != b[index]:
            return index
    return limit


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
