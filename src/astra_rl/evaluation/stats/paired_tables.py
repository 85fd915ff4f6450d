"""Outcomes of two sides at the same prompts, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple


class PairCounts(NamedTuple):
    """Pairs of trials by outcome: success on both sides, on one only, on neither."""

    both: int
    only_a: int
    only_b: int
    neither: int


class PromptTrials(NamedTuple):
    """Trials of both sides at one prompt.

    Attributes:
        a: Whether each trial of A succeeded, by number of the trial; None if that is not known.
        b: The same of B.
    """

    a: Mapping[int, bool | None]
    b: Mapping[int, bool | None]


class PromptTable(NamedTuple):
    """Trials of both sides at one prompt, counted: many prompts have the same table.

    Attributes:
        pairs: Trials that both sides made, 3 x 3 counts: by the outcome of A (success, failure, not
            known), then by that of B.
        only_a: Trials that only A made, by outcome.
        only_b: Trials that only B made, by outcome.
    """

    pairs: tuple[int, ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]

    @classmethod
    def of(cls, a: Mapping[int, bool | None], b: Mapping[int, bool | None]) -> PromptTable:
        """Count the trials of a prompt, see `PromptTrials`."""
        pairs = Counter((outcome, b[trial]) for trial, outcome in a.items() if trial in b)
        only_a = Counter(outcome for trial, outcome in a.items() if trial not in b)
        only_b = Counter(outcome for trial, outcome in b.items() if trial not in a)
        return cls(
            tuple(pairs[of_a, of_b] for of_a in _OUTCOMES for of_b in _OUTCOMES),
            tuple(only_a[each] for each in _OUTCOMES),
            tuple(only_b[each] for each in _OUTCOMES),
        )

    @property
    def a(self) -> tuple[int, int, int]:
        """Successes, failures and unknown outcomes of A."""
        first, second, third = (sum(self.pairs[at : at + 3]) for at in (0, 3, 6))
        return first + self.only_a[0], second + self.only_a[1], third + self.only_a[2]

    @property
    def b(self) -> tuple[int, int, int]:
        """Successes, failures and unknown outcomes of B."""
        first, second, third = (sum(self.pairs[at::3]) for at in (0, 1, 2))
        return first + self.only_b[0], second + self.only_b[1], third + self.only_b[2]

    @property
    def known(self) -> PairCounts:
        """Trials whose outcomes are known on both sides."""
        return PairCounts(self.pairs[0], self.pairs[1], self.pairs[3], self.pairs[4])

    @property
    def unscored(self) -> int:
        """Trials of both sides of which one outcome is not known."""
        return sum(self.pairs) - sum(self.known)

    @property
    def trials(self) -> int:
        """Trials of both sides together."""
        return sum(self.a) + sum(self.b)

    def imputed(self, a: bool, b: bool) -> PromptTable:
        """Return the table with the unknown outcomes of each side replaced."""
        pairs = [0] * 9
        at_a, at_b = _OUTCOMES.index(a), _OUTCOMES.index(b)
        for at, count in enumerate(self.pairs):
            row, column = divmod(at, 3)
            pairs[3 * (at_a if row == 2 else row) + (at_b if column == 2 else column)] += count
        return PromptTable(tuple(pairs), _imputed(self.only_a, at_a), _imputed(self.only_b, at_b))


_OUTCOMES = (True, False, None)


def _imputed(counts: tuple[int, ...], at: int) -> tuple[int, ...]:
    found = [*counts[:2], 0]
    found[at] += counts[2]
    return tuple(found)
