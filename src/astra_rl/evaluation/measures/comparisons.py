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
from astra_rl.evaluation.records.course import Course, End
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome, hides_failures
from astra_rl.evaluation.stats.paired import PairedComparison, compare_tables
from astra_rl.evaluation.stats.paired_tables import PromptTable
from astra_rl.evaluation.stats.paired_tests import holm
from astra_rl.evaluation.stats.product_limit import Courses

Trials = Mapping[int, bool | None]
"""Whether each trial of one side at one prompt succeeded, by number; None if that is not known."""
FIRST, SECOND = "the first", "the second"


class PromptSide(NamedTuple):
    """Attempts of one side at one prompt.

    Attributes:
        trials: Whether each trial succeeded, see `Trials`.
        courses: The known part of each attempt.
        selective: Whether an outcome is unknown that is not like the known ones, see
            `hides_failures`.
    """

    trials: Trials
    courses: Sequence[Course | None]
    selective: bool

    @classmethod
    def of(cls, rows: Sequence[AttemptRow]) -> PromptSide:
        """Read attempts; of several with the same number the last one counts."""
        return cls(
            {row.trial: success_of(row) for row in rows},
            [row.course for row in rows],
            any(hides_failures(row.outcome, row.answers) for row in rows),
        )


def compare(
    rows_a: Iterable[AttemptRow],
    rows_b: Iterable[AttemptRow],
    *,
    confidence: float = 0.95,
    sequential: bool = False,
) -> PairedComparison:
    """Compare two sets of attempts on the same prompts; see `compare_trials`.

    The sides may differ in attacker, target, version, and in the number of trials per prompt. Of
    several attempts of a side with the same id the last one counts.

    Args:
        rows_a: Attempts of A.
        rows_b: Attempts of B.
        confidence: Of the interval of the difference, in (0, 1).
        sequential: Whether the prompts depend on outcomes, see `compare_tables`.

    Raises:
        ConfigurationError: They have no prompt in common, or a trial occurs twice on one side.
    """
    ordered_a, ordered_b = (
        sorted({row.id: row for row in rows}.values(), key=attrgetter("prompt_id", "trial"))
        for rows in (rows_a, rows_b)
    )
    tally = PairTally(sequential=sequential)
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


def side_of(rows: Iterable[AttemptRow], name: str = "this") -> PromptSide:
    """Read the attempts of one side at one prompt.

    Args:
        rows: Attempts with different ids.
        name: Name of the set of attempts in an error.

    Raises:
        ConfigurationError: A trial occurs twice.
    """
    attempts = list(rows)
    found = PromptSide.of(attempts)
    if len(found.trials) < len(attempts):
        raise ConfigurationError(
            f"{name} set of attempts has trials of several attackers or targets; choose one "
            "attacker, one target and one phase for each side."
        )
    return found


def success_of(row: AttemptRow) -> bool | None:
    """Return whether an attack succeeded; None if that is not known."""
    return row.outcome is Outcome.SUCCESS if row.outcome in KNOWN_OUTCOMES else None


class PairTally:
    """Counts two sides prompt by prompt; memory grows with the number of different tables.

    Args:
        sequential: Whether the prompts depend on outcomes, see `compare_tables`.
    """

    def __init__(self, *, sequential: bool = False) -> None:
        self._sequential = sequential
        self._tables: Counter[PromptTable] = Counter()
        self._unpaired = 0
        self._courses = Courses(), Courses()
        self._ends: tuple[set[End], set[End]] = set(), set()
        self._selective = False

    def add(self, a: PromptSide, b: PromptSide) -> None:
        """Add a prompt; a side that did not play it is empty."""
        if not (a.trials and b.trials):
            self._unpaired += len(a.trials) + len(b.trials)
            return
        self._tables[PromptTable.of(a.trials, b.trials)] += 1
        self._selective |= a.selective or b.selective
        for counted, ends, side in zip(self._courses, self._ends, (a, b), strict=True):
            ends.update(course.end for course in side.courses if course is not None)
            for course in side.courses:  # each prompt has the same weight
                counted.add(course, 1 / len(side.courses))

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
        a, b = (each.rate for each in self._courses)
        # What was withheld needs no score, so those that lack one are not like the known ones.
        selective = self._selective or any({End.WITHHELD, End.LOST} <= ends for ends in self._ends)
        return compare_tables(
            self._tables,
            unpaired=self._unpaired,
            confidence=confidence,
            by_turn=a - b if selective else None,
            sequential=self._sequential,
        )


@dataclass
class TrialTable:
    """Outcomes of the attempts of one side by prompt and trial, in 22 bytes per attempt."""

    _prompts: array[int] = field(default_factory=lambda: array("Q"))
    """A digest of each attempt's prompt."""
    _trials: array[int] = field(default_factory=lambda: array("q"))
    _outcomes: array[int] = field(default_factory=lambda: array("b"))
    _turns: array[int] = field(default_factory=lambda: array("i"))
    """Turn of each attempt's course; -1: not recorded."""
    _ends: array[int] = field(default_factory=lambda: array("b"))
    _selective: set[int] = field(default_factory=set)
    """Prompts with an outcome that hides failures."""

    def add(self, prompt_id: str, side: PromptSide) -> None:
        """Add the attempts at one prompt, which have different numbers; each prompt once."""
        prompt = int.from_bytes(hashlib.blake2b(prompt_id.encode(), digest_size=8).digest())
        self._prompts.extend([prompt] * len(side.trials))
        self._trials.extend(side.trials)
        self._outcomes.extend(-1 if each is None else each for each in side.trials.values())
        self._turns.extend(-1 if each is None else each.turn for each in side.courses)
        self._ends.extend(End.LOST if each is None else each.end for each in side.courses)
        if side.selective:
            self._selective.add(prompt)

    def compare(self, other: TrialTable, *, sequential: bool = False) -> PairedComparison:
        """Compare this side (A) with another (B); see `compare_trials`.

        Args:
            other: The other side.
            sequential: Whether the prompts depend on outcomes, see `compare_tables`.

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
        tally, shared = PairTally(sequential=sequential), 0
        for at_a, at_b in zip(*(each.tolist() for each in places), strict=True):
            a, b = self._at(starts[0], at_a), other._at(starts[1], at_b)
            shared += len(a.trials) + len(b.trials)
            tally.add(a, b)
        tally.leave_out(len(self._prompts) + len(other._prompts) - shared)
        return tally.result()

    def _starts(self) -> NDArray[np.intp]:
        """Return where the attempts at each prompt start, and the number of all."""
        prompts = np.asarray(self._prompts, dtype=np.uint64)
        changes = np.flatnonzero(prompts[1:] != prompts[:-1]) + 1
        first = [0] if len(prompts) else []
        return np.concatenate([first, changes, [len(prompts)]]).astype(np.intp)

    def _at(self, starts: NDArray[np.intp], number: int) -> PromptSide:
        rows = slice(int(starts[number]), int(starts[number + 1]))
        outcomes = (None if each < 0 else bool(each) for each in self._outcomes[rows])
        courses = zip(self._turns[rows], self._ends[rows], strict=True)
        return PromptSide(
            dict(zip(self._trials[rows], outcomes, strict=True)),
            [None if turn < 0 else Course(turn, End(end)) for turn, end in courses],
            self._prompts[rows.start] in self._selective,
        )


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
    """Counts two sides by category of the prompts; memory is that of `PairTally`.

    Args:
        sequential: Whether the prompts depend on outcomes, see `compare_tables`.
    """

    def __init__(self, *, sequential: bool = False) -> None:
        self._sequential = sequential
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
            tally = self._tallies.setdefault(name, PairTally(sequential=self._sequential))
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
