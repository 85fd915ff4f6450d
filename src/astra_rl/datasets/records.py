"""Unvalidated records of a file, and the collection of their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from astra_rl.errors import ConfigurationError

MAX_LISTED_ERRORS = 20
"""Maximum number of invalid rows that an error lists; further ones are counted."""


@dataclass(frozen=True)
class Record:
    """One unvalidated record of a file.

    Attributes:
        number: Number of its line, row or item, from 1.
        values: Values by column name.
    """

    number: int
    values: Mapping[str, Any]


class RowErrors:
    """Collects the errors of a file's records, to report all of them in one exception.

    Args:
        source: Name of the file.
        unit: Unit in which records are counted, for example ``"line"``.
    """

    def __init__(self, source: str, unit: str) -> None:
        self.source, self.unit = source, unit
        self._found: list[tuple[int, str]] = []

    def add(self, number: int, reason: str) -> None:
        """Add the error of one record."""
        self._found.append((number, reason))

    def check(self) -> None:
        """Raise an exception if errors were added.

        Raises:
            ConfigurationError: Lists the errors, up to `MAX_LISTED_ERRORS`.
        """
        if not self._found:
            return
        found, more = sorted(self._found), len(self._found) - MAX_LISTED_ERRORS
        lines = [f"{self.unit} {number}: {reason}" for number, reason in found[:MAX_LISTED_ERRORS]]
        if more > 0:
            lines.append(f"and {more} more")
        rows = "1 invalid row" if len(found) == 1 else f"{len(found)} invalid rows"
        raise ConfigurationError(
            "\n  ".join([f"{self.source}: {rows}, so nothing was loaded.", *lines])
        )


def kind_of(value: object) -> str:
    """Return what a value of a record is, in words."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else "no text")
