"""Verification of the index of an attempt log, which may come with the folder of somebody else.

Each row of an index has a seal: a keyed BLAKE2b digest of the row and of the line of the log that
it was made from. The key belongs to the user and is stored in the cache folder, outside of every
run. An index is used only if every row has its seal and every line of the log is accounted for;
otherwise it is rebuilt from the log. Verification reads the log once, without parsing it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import IO, Any

from astra_rl.errors import AstraError
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.infra.user_key import user_key

COLUMNS = ", ".join(AttemptRow._fields)


def values_of(row: AttemptRow) -> tuple[Any, ...]:
    """Return the values of a row as SQLite returns them.

    It has no booleans, no enumerations and no negative zero.
    """
    return tuple(map(_stored, row))


def _stored(value: Any) -> Any:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return int(value)
    return value + 0.0 if isinstance(value, float) else value


def seal(start: int, values: tuple[Any, ...], line: bytes) -> bytes:
    """Return the seal of an index row.

    Args:
        start: Offset of the line in the log.
        values: See `values_of`.
        line: The line of the log, with its newline.
    """
    return _sealed(hashlib.blake2b(key=user_key(), digest_size=16), start, values, line)


def _sealed(begun: hashlib.blake2b, start: int, values: tuple[Any, ...], line: bytes) -> bytes:
    """Return the seal of a row, from an empty digest with the key of the user."""
    digest = begun.copy()
    digest.update(repr((start, values)).encode() + line)
    return digest.digest()


def is_derived_from(log: Path, index: sqlite3.Connection, schema: list[tuple[Any, ...]]) -> bool:
    """Whether an index is a complete and unmodified index of the beginning of a log.

    Args:
        log: The log.
        index: The index, in a transaction.
        schema: Expected `schema_of` the index. Nothing else may be defined: a query of a crafted
            view can run forever.
    """
    if schema_of(index) != schema:
        return False
    if index.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
        return False
    [(indexed, unreadable)] = index.execute("SELECT indexed, unreadable FROM state").fetchall()
    if type(indexed) is not int or not 0 <= indexed <= log.stat().st_size:
        return False
    # A later line has a later number, so the rows come in the order of the lines without sorting.
    rows = index.execute(f"SELECT start, size, seal, {COLUMNS} FROM attempts ORDER BY sequence")
    found, at = 0, 0
    begun = hashlib.blake2b(key=user_key(), digest_size=16)
    with open(log, "rb", buffering=1 << 20) as file:
        for row in rows:
            start, size, sealed = row[:3]
            if not 0 <= start < start + size <= indexed:
                return False
            if start != at:  # lines without a row
                lines = _unreadable_until(file, start, index)
                if lines is None:
                    return False
                found += lines
            line = file.read(size)
            at = start + size
            if sealed != _sealed(begun, start, row[3:], line):
                return False
        rest = _unreadable_until(file, indexed, index)
    return rest is not None and found + rest == unreadable


def schema_of(index: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Return the definitions of a database, and its version."""
    [version] = index.execute("PRAGMA user_version").fetchall()
    found = index.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
    return [version, *found]


def _unreadable_until(file: IO[bytes], end: int, index: sqlite3.Connection) -> int | None:
    """Read the lines of the log that have no row, up to this offset.

    Returns:
        The number of lines that are no records; None if a line should have a row, or if the
        offset is within a line.
    """
    unreadable = 0
    while file.tell() < end:
        start, line = file.tell(), file.readline()
        try:
            key = Attempt.from_json(line).id
        except AstraError:
            unreadable += 1
            continue
        # An attempt that was made again has a row for its last record only.
        later = index.execute("SELECT 1 FROM attempts WHERE id = ? AND start > ?", (key, start))
        if later.fetchone() is None:
            return None
    return unreadable if file.tell() == end else None
