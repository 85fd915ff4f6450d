"""The part of a conversation that has a verdict of the judge in every turn."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


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
