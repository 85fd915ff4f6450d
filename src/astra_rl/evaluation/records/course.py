"""The part of a conversation that has a verdict of the judge in every turn."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome


class End(IntEnum):
    """How the known part of a conversation ends."""

    SUCCESS = 0
    """With its first success, and no verdict is missing before it."""
    LOST = 1
    """With a missing verdict."""
    COMPLETE = 2
    """Every turn has a verdict, and none is a success."""
    FAILED = 3
    """With a call that failed, so that there is no response."""
    WITHHELD = 4
    """With a turn that needs no verdict: the response was withheld, or there was no attack."""


class Course(NamedTuple):
    """The known part of a conversation.

    Attributes:
        turn: Turn, counted from 1, of the first success or of the first missing verdict; the number
            of turns of a complete conversation.
        end: Which of these it is.
    """

    turn: int
    end: End

    @classmethod
    def of(
        cls, outcome: Outcome, turns: int, won: int | None, missing: int | None
    ) -> Course | None:
        """Return the part of a conversation with a verdict in each turn.

        Args:
            outcome: Outcome of the conversation.
            turns: Number of its turns.
            won: Its first failing turn, see `AttemptRow`.
            missing: Its first turn without a verdict, see `AttemptRow`.

        Returns:
            None if it was not recorded which verdicts are missing.
        """
        lost = End.FAILED if outcome is Outcome.ERROR else End.LOST
        if missing is not None and (won is None or missing <= won):
            return cls(missing, lost)
        if outcome is Outcome.SUCCESS:
            won = 1 if won is None and turns == 1 else won
            return None if won is None else cls(won, End.SUCCESS)
        if outcome in (Outcome.BLOCKED, Outcome.NO_ATTACK):
            return cls(max(1, turns), End.WITHHELD)
        if outcome in KNOWN_OUTCOMES:
            return cls(max(1, turns), End.COMPLETE)
        return cls(1, lost) if turns <= 1 else None
