"""Evaluations side by side: paired comparison, by category, and the transfer matrix."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.stats.paired import PairedComparison, PromptTable, compare_tables, holm

Trials = Mapping[int, bool | None]
"""Whether each trial of one side at one prompt succeeded, by number; None if that is not known."""
FIRST, SECOND = "the first", "the second"


def compare(
    rows_a: Iterable[AttemptRow], rows_b: Iterable[AttemptRow], *, confidence: float = 0.95
) -> PairedComparison:
    """Compare two sets of attempts on the same prompts; see `compare_trials`.

    The sides may differ in attacker, target, version, and in the number of trials per prompt. Of
    several attempts of a side with the same id the last one counts.

    Args:
        rows_a: Attempts of A.
        rows_b: Attempts of B.
        confidence: Of the interval of the difference, in (0, 1).

    Raises:
        ConfigurationError: They have no prompt in common, or a trial occurs twice on one side.
    """
    ordered_a, ordered_b = (
        sorted({row.id: row for row in rows}.values(), key=attrgetter("prompt_id", "trial"))
        for rows in (rows_a, rows_b)
    )
    tally = PairTally()
    for a, b in joined(ordered_a, ordered_b):
        tally.add(side_of(a, FIRST), side_of(b, SECOND))
    return tally.result(confidence)


RowT = TypeVar("RowT")


def joined(
    rows_a: Iterable[RowT],
    rows_b: Iterable[RowT],
    prompt: Callable[[RowT], str] = attrgetter("prompt_id"),
) -> Iterator[tuple[Sequence[RowT], Sequence[RowT]]]:
    """Yield the rows of both sides prompt by prompt; a side that did not play it is empty.

    Args:
        rows_a: Rows of A, ordered by prompt; those of one prompt are in memory at a time.
        rows_b: Rows of B, likewise.
        prompt: Returns the prompt of a row.
    """
    groups = [groupby(rows, key=prompt) for rows in (rows_a, rows_b)]
    heads = [_next(each) for each in groups]
    while present := [head[0] for head in heads if head is not None]:
        least = min(present)
        of_both: list[Sequence[RowT]] = []
        for at, head in enumerate(heads):
            is_played = head is not None and head[0] == least
            of_both.append(head[1] if head is not None and is_played else [])
            if is_played:
                heads[at] = _next(groups[at])
        yield of_both[0], of_both[1]


def _next(groups: Iterator[tuple[str, Iterable[RowT]]]) -> tuple[str, list[RowT]] | None:
    return next(((prompt, list(rows)) for prompt, rows in groups), None)


def side_of(rows: Iterable[AttemptRow], name: str = "this") -> Trials:
    """Return the outcomes of attempts at one prompt by trial.

    Args:
        rows: Attempts with different ids.
        name: Name of the set of attempts in an error.

    Raises:
        ConfigurationError: A trial occurs twice.
    """
    found: dict[int, bool | None] = {}
    for row in rows:
        if row.trial in found:
            raise ConfigurationError(
                f"{name} set of attempts has trials of several attackers or targets; choose one "
                "attacker, one target and one phase for each side."
            )
        found[row.trial] = success_of(row)
    return found


def success_of(row: AttemptRow) -> bool | None:
    """Return whether an attack succeeded; None if that is not known."""
    return row.outcome is Outcome.SUCCESS if row.outcome in KNOWN_OUTCOMES else None


class PairTally:
    """Counts two sides prompt by prompt; memory grows with the number of different tables."""

    def __init__(self) -> None:
        self._tables: Counter[PromptTable] = Counter()
        self._unpaired = 0

    def add(self, a: Trials, b: Trials) -> None:
        """Add a prompt; a side that did not play it is empty."""
        if a and b:
            self._tables[PromptTable.of(a, b)] += 1
        else:
            self._unpaired += len(a) + len(b)

    def leave_out(self, trials: int) -> None:
        """Count trials at prompts that only one side played."""
        self._unpaired += trials

    @property
    def is_shared(self) -> bool:
        """Whether both sides played a prompt."""
        return bool(self._tables)

    def result(self, confidence: float = 0.95) -> PairedComparison:
        """Compare the sides; see `compare_trials`.

        Raises:
            ConfigurationError: They have no prompt in common.
        """
        if not self._tables:
            raise ConfigurationError(
                "the two sets of attempts have no prompt in common; only attempts at the same "
                "prompts can be compared in pairs."
            )
        return compare_tables(self._tables, unpaired=self._unpaired, confidence=confidence)


@dataclass
class TrialTable:
    """Outcomes of the attempts of one side by prompt and trial, in 17 bytes per attempt."""

    _prompts: array[int] = field(default_factory=lambda: array("Q"))
    """A digest of each attempt's prompt."""
    _trials: array[int] = field(default_factory=lambda: array("q"))
    _outcomes: array[int] = field(default_factory=lambda: array("b"))

    def add(self, prompt_id: str, trials: Trials) -> None:
        """Add the outcomes at one prompt; each prompt once."""
        digest = hashlib.blake2b(prompt_id.encode(), digest_size=8).digest()
        self._prompts.extend([int.from_bytes(digest)] * len(trials))
        self._trials.extend(trials)
        self._outcomes.extend(-1 if each is None else each for each in trials.values())

    def compare(self, other: TrialTable) -> PairedComparison:
        """Compare this side (A) with another (B); see `compare_trials`.

        Raises:
            ConfigurationError: They have no prompt in common.
        """
        starts = self._starts(), other._starts()
        _, *places = np.intersect1d(
            np.asarray(self._prompts, dtype=np.uint64)[starts[0][:-1]],
            np.asarray(other._prompts, dtype=np.uint64)[starts[1][:-1]],
            assume_unique=True,
            return_indices=True,
        )
        tally, shared = PairTally(), 0
        for at_a, at_b in zip(*(each.tolist() for each in places), strict=True):
            a, b = self._at(starts[0], at_a), other._at(starts[1], at_b)
            shared += len(a) + len(b)
            tally.add(a, b)
        tally.leave_out(len(self._prompts) + len(other._prompts) - shared)
        return tally.result()

    def _starts(self) -> NDArray[np.intp]:
        """Return where the attempts at each prompt start, and the number of all."""
        prompts = np.asarray(self._prompts, dtype=np.uint64)
        changes = np.flatnonzero(prompts[1:] != prompts[:-1]) + 1
        first = [0] if len(prompts) else []
        return np.concatenate([first, changes, [len(prompts)]]).astype(np.intp)

    def _at(self, starts: NDArray[np.intp], number: int) -> Trials:
        rows = slice(int(starts[number]), int(starts[number + 1]))
        outcomes = (None if each < 0 else bool(each) for each in self._outcomes[rows])
        return dict(zip(self._trials[rows], outcomes, strict=True))


class CategoryComparison(NamedTuple):
    """Paired comparison of one category of prompts, one of several.

    Attributes:
        pairs: The comparison; its interval holds for all categories together with 95% (Bonferroni).
        p_value: Its p-value, adjusted for the number of categories, see `holm`.
    """

    pairs: PairedComparison
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {**self.pairs.as_dict(), "p_value_holm": self.p_value}


def _by_difference(pairs: PairedComparison) -> float:
    return 0.0 if math.isnan(pairs.difference) else -abs(pairs.difference)


class CategoryTally:
    """Counts two sides by category of the prompts; memory is that of `PairTally`."""

    def __init__(self) -> None:
        self._tallies: dict[str, PairTally] = {}

    def add(self, a: Iterable[AttemptRow], b: Iterable[AttemptRow]) -> None:
        """Add the attempts at one prompt; its attempts may be of several categories.

        Raises:
            ConfigurationError: A trial occurs twice on one side.
        """
        groups: dict[str, tuple[list[AttemptRow], list[AttemptRow]]] = {}
        for at, rows in enumerate((a, b)):
            for row in rows:
                groups.setdefault(row.category, ([], []))[at].append(row)
        for name, (of_a, of_b) in groups.items():
            tally = self._tallies.setdefault(name, PairTally())
            tally.add(side_of(of_a, FIRST), side_of(of_b, SECOND))

    def result(self) -> dict[str, CategoryComparison]:
        """Compare the sides in each category that both played, largest difference first.

        Returns:
            By category; empty if there are fewer than two categories.
        """
        shared = {name: tally for name, tally in self._tallies.items() if tally.is_shared}
        if len(shared) < 2:
            return {}
        confidence = 1 - 0.05 / len(shared)
        found = [tally.result(confidence) for tally in shared.values()]
        adjusted = holm([each.p_value for each in found])
        named = {
            name: CategoryComparison(each, p_value)
            for name, each, p_value in zip(shared, found, adjusted, strict=True)
        }
        return dict(sorted(named.items(), key=lambda item: _by_difference(item[1].pairs)))
