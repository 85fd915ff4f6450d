"""Sets of attempts that are read several times, in memory or in a log that exceeds memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from astra_rl.evaluation.records.attempt import Attempt, AttemptRow


@runtime_checkable
class AttemptSource(Protocol):
    """Attempts that can be read any number of times, one by one.

    Orders are ``"sequence"`` (as recorded) and ``"prompt"`` (by prompt, trial and sequence).
    """

    def attempts(self, *, order: Any = "sequence") -> Iterator[Attempt]:
        """Yield the attempts."""

    def rows(self, *, order: Any = "sequence") -> Iterator[AttemptRow]:
        """Yield their statistics; of several attempts with the same id the last one."""


class AttemptsInMemory:
    """Attempts of a sequence or an iterator.

    Args:
        attempts: The attempts; an iterator is read to its end.
    """

    def __init__(self, attempts: Iterable[Attempt]) -> None:
        self._attempts = list(attempts)

    def attempts(self, *, order: str = "sequence") -> Iterator[Attempt]:
        """Yield the attempts; see `AttemptSource`."""
        yield from self._ordered(self._attempts, order)

    def rows(self, *, order: str = "sequence") -> Iterator[AttemptRow]:
        """Yield their statistics; see `AttemptSource`."""
        unique = {each.id: each for each in self._attempts}.values()
        yield from (each.row for each in self._ordered(unique, order))

    @staticmethod
    def _ordered(attempts: Iterable[Attempt], order: str) -> Iterable[Attempt]:
        if order == "sequence":
            return attempts
        return sorted(attempts, key=lambda each: (each.prompt_id, each.trial))


def source_of(attempts: Iterable[Attempt] | AttemptSource) -> AttemptSource:
    """Return attempts as a source; what is no source is held in memory."""
    return attempts if isinstance(attempts, AttemptSource) else AttemptsInMemory(attempts)
