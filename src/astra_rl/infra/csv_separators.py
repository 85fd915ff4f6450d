"""Separators of the cells in CSV files."""

from __future__ import annotations

from collections.abc import Sequence

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
"""Separators of the cells in a CSV file."""


def separator_of(header: Sequence[str]) -> str | None:
    """Return the separator of column names that were read as one name; None if they were not."""
    if len(header) != 1:
        return None
    split = {separator: header[0].split(separator) for separator in SEPARATORS}
    found = (each for each, names in split.items() if len(names) > 1 and all(map(str.strip, names)))
    return next(found, None)
