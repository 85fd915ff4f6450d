"""Index of an attempt log: a SQLite file with the offset and the statistics of each record.

It is derived from the log, so it can be deleted at any time and is rebuilt. It is verified when it
is opened (see `astra_rl.runs.index_seal`), unless neither file has changed since the last time (see
`astra_rl.runs.verified_logs`), and rebuilt if it is not of this log, for instance after a copy.
Only writers hold the lock of the log. Readers that find the index behind the log update it in small
batches, so that SQLite's own lock is never held for long; if the index cannot be written (disk full
or read-only), a reader uses a temporary one.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import secrets
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from astra_rl.errors import AstraError, ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow, SchemaTooNewError
from astra_rl.infra.checkpointing import sync
from astra_rl.infra.redaction import REDACTED
from astra_rl.logging import logger
from astra_rl.runs.index_seal import COLUMNS, is_derived_from, schema_of, seal, values_of
from astra_rl.runs.verified_logs import (
    current_status,
    is_verified,
    remember_indexed,
    remember_verified,
    settled_stamp,
)

_INDEX_VERSION = 7
_TABLES = f"""
BEGIN;
CREATE TABLE attempts (
    sequence INTEGER PRIMARY KEY, start INTEGER NOT NULL, size INTEGER NOT NULL,
    id TEXT NOT NULL UNIQUE, phase TEXT NOT NULL, prompt_id TEXT NOT NULL, trial INTEGER NOT NULL,
    attacker TEXT NOT NULL, target TEXT NOT NULL, outcome TEXT NOT NULL, turns INTEGER NOT NULL,
    first_failing_turn INTEGER, last_turn_failed INTEGER, score REAL, logprob REAL,
    logprob_tokens INTEGER, queries_per_turn INTEGER NOT NULL, judge TEXT NOT NULL,
    judge_id TEXT NOT NULL, threshold REAL NOT NULL, category TEXT NOT NULL, judged INTEGER,
    utility REAL, first_missing_turn INTEGER, seal BLOB NOT NULL
);
CREATE TABLE state (indexed INTEGER NOT NULL, unreadable INTEGER NOT NULL);
INSERT INTO state VALUES (0, 0);
PRAGMA user_version = {_INDEX_VERSION};
COMMIT;
"""
_ORDERS = """
CREATE INDEX by_score ON attempts (outcome, score DESC, sequence);
CREATE INDEX by_logprob ON attempts (outcome, logprob DESC, sequence);
"""
_CACHE_KIB = 1 << 16
"""Memory of SQLite, in KiB, while an index is made: the ids come in random order."""
BATCH = 1000
"""Number of attempts that are indexed in one transaction."""
PATIENCE = 1.0
"""Seconds that a writer waits for the lock of the log, which readers hold only for an instant."""
DAMAGE = (sqlite3.DatabaseError, TypeError, ValueError, OverflowError)
"""Errors that a damaged index raises: by SQLite, or by values of unexpected types."""


class LogInUseError(ConfigurationError):
    """Another process is writing to the log."""


class Health(NamedTuple):
    """Damage found in a log.

    Attributes:
        torn: Size in bytes of an incomplete last line, left by a crash.
        unreadable: Number of other lines that are no attempt records.
    """

    torn: int
    unreadable: int


def read_attempt(file: IO[bytes], start: int, size: int) -> Attempt:
    """Read the record at this offset of the log."""
    file.seek(start)
    try:
        return Attempt.from_json(file.read(size))
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{file.name} changed while it was read (byte {start}: {error}). Run the command again."
        ) from error


@contextlib.contextmanager
def lock(path: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the exclusive lock of a log; the operating system releases it if the process dies.

    Args:
        path: The log.
        patience: Seconds to wait for the lock.

    Raises:
        LogInUseError: Another process holds it.
    """
    deadline = time.monotonic() + patience
    with open(path.with_name(f"{path.name}.lock"), "a+", encoding="utf-8") as file:
        while not _has_locked(file.fileno()):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise LogInUseError(
                    f"{path} is being written by {holder}. Wait until it is done, or choose "
                    "another folder."
                )
            time.sleep(0.02)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _has_locked(descriptor: int) -> bool:
    try:
        _lock_file(descriptor)
    except OSError:
        return False
    return True


if sys.platform == "win32":
    import msvcrt

    def _lock_file(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # away from the text, which others may read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock_file(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def open_to_read(path: Path, resources: contextlib.ExitStack) -> tuple[sqlite3.Connection, Health]:
    """Open the index of a log for reading; the log is not changed and its writer not blocked."""
    if not path.is_file():
        raise ConfigurationError(f"{path} is not there; a run writes it as it goes.")
    try:
        found = _open_and_catch_up(path, resources)
    except DAMAGE as error:
        if isinstance(error, AstraError):
            raise
        found = None
    index, health = found or _made_again(path, resources)
    if health.torn and _is_being_written(path):  # in progress, not torn
        health = health._replace(torn=0)
    warn_of_damage(path, index, health)
    return index, health


def _open_and_catch_up(
    path: Path, resources: contextlib.ExitStack
) -> tuple[sqlite3.Connection, Health] | None:
    """Open the existing index and update it; None if it is not of this log."""
    connection = _open_index_to_read(path)
    if connection is None:
        return None
    resources.enter_context(contextlib.closing(connection))
    if _indexed(connection) == path.stat().st_size:
        return connection, Health(0, _unreadable(connection))
    # Behind the log: a writer is active, or died before it indexed its last attempts.
    before = settled_stamp(path)
    try:
        with contextlib.closing(sqlite3.connect(index_path(path), timeout=PATIENCE)) as shared:
            health = catch_up(path, shared)
        remember_indexed(path, index_path(path), before)
        return connection, health
    except sqlite3.OperationalError as error:
        if is_busy(error):  # another process updates it
            return connection, Health(0, _unreadable(connection))
    own = resources.enter_context(contextlib.closing(sqlite3.connect("")))
    connection.backup(own)
    return own, catch_up(path, own)


def _made_again(path: Path, resources: contextlib.ExitStack) -> tuple[sqlite3.Connection, Health]:
    """Rebuild the index of a log, and install it unless the log has a writer."""
    index, before = index_path(path), settled_stamp(path)
    made = _beside(index)
    try:
        resources.callback(_discard, made)
        health = _make_index(path, made)
        with contextlib.suppress(LogInUseError), lock(path):
            remove_index(path)
            made.replace(index)
            made = index
            remember_indexed(path, index, before)
        connection = sqlite3.connect(f"{made.absolute().as_uri()}?mode=ro", uri=True)
        return resources.enter_context(contextlib.closing(connection)), health
    except (OSError, sqlite3.OperationalError):  # the disk is full, or read-only
        own = resources.enter_context(contextlib.closing(_new_index("")))
        return own, catch_up(path, own)


def _discard(made: Path) -> None:
    with contextlib.suppress(OSError):  # not there, also on a read-only disk
        made.unlink()


def _beside(index: Path) -> Path:
    """Return a new name for an index that is being made."""
    return index.with_name(f"{_leftover(index)}{os.getpid()}-{secrets.token_hex(4)}")


def _make_index(path: Path, made: Path) -> Health:
    """Make the index of a log in a new file, which no other process knows yet."""
    with contextlib.closing(sqlite3.connect(made)) as connection:
        # If this process dies, the file is not used.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.executescript(_TABLES)
        health = catch_up(path, connection)
        connection.executescript(_ORDERS)  # sorting all rows once is faster than row by row
        # Without WAL, readers of the index would block the next writer.
        connection.execute("PRAGMA journal_mode = WAL")
    sync(made)
    return health


def _is_being_written(path: Path) -> bool:
    try:
        with lock(path):
            return False
    except LogInUseError:
        return True
    except OSError:  # read-only, so it has no writer
        return False


def is_busy(error: sqlite3.OperationalError) -> bool:
    """Whether another connection holds the lock of the index."""
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


@contextlib.contextmanager
def open_to_add(path: Path) -> Iterator[sqlite3.Connection]:
    """Open or create the index for writing; the caller holds the lock of the log."""
    index = index_path(path)
    for left in index.parent.glob(f"{_leftover(index)}*"):  # left by a killed reader
        left.unlink(missing_ok=True)
    known = _open_index_to_read(path)
    if known is None:
        remove_index(path)
        made = _beside(index)
        try:
            _make_index(path, made)
            made.replace(index)
        finally:
            made.unlink(missing_ok=True)
    else:
        known.close()
    connection = sqlite3.connect(index, timeout=PATIENCE)
    with contextlib.closing(connection):
        # In WAL mode readers see committed data and never block the writer.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        yield connection


def _leftover(index: Path) -> str:
    """Return the name prefix of indices that are being built."""
    return f".{index.name}-"


def remove_index(path: Path) -> None:
    """Remove the index of a log; it is made again. Needs the lock."""
    index = index_path(path)
    # SQLite would apply a journal that it finds beside the next index.
    for end in ("", "-wal", "-shm", "-journal"):
        index.with_name(index.name + end).unlink(missing_ok=True)


@contextlib.contextmanager
def reading_index(path: Path) -> Iterator[None]:
    """Turn errors of a damaged index inside the block into one.

    Raises:
        ConfigurationError: The index is damaged; the message says that it can be deleted.
    """
    try:
        yield
    except AstraError:
        raise
    except DAMAGE as error:
        raise ConfigurationError(
            f"{index_path(path)} is damaged ({error}). Delete it: it only repeats what {path} "
            "says, and is made again."
        ) from error


def _new_index(database: str) -> sqlite3.Connection:
    """Create an empty index; with an empty name it is a temporary file."""
    connection = sqlite3.connect(database, timeout=PATIENCE)
    connection.executescript(_TABLES + _ORDERS)
    return connection


def _open_index_to_read(path: Path) -> sqlite3.Connection | None:
    """Open and verify the existing index; None if there is none, or it is not of this log."""
    index = index_path(path)
    if not index.is_file():
        return None
    status = current_status(path, index)
    connection = _connect_to_read(index)
    if is_verified(path, status):
        return connection
    is_settled = status is not None and status.settles_in <= 0
    try:
        connection.execute("BEGIN")  # one snapshot, also if a writer is active
        with connection:
            if is_derived_from(path, connection, _schema()):
                if is_settled and status == current_status(path, index):  # not changed meanwhile
                    remember_verified(path, status)
                return connection
    except DAMAGE as error:
        logger.debug("the index of %s is damaged: %s", path, error)
    connection.close()
    return None


def _connect_to_read(index: Path) -> sqlite3.Connection:
    name = f"{index.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(name, uri=True)
    try:
        connection.execute("PRAGMA user_version")
    except sqlite3.OperationalError:
        connection.close()
        # SQLite cannot make its shared memory file, because the folder is read-only. What a
        # write-ahead log has is left out here, and is indexed again from the log.
        connection = sqlite3.connect(f"{name}&immutable=1", uri=True)
    return connection


@functools.cache
def _schema() -> list[tuple[Any, ...]]:
    with contextlib.closing(_new_index(":memory:")) as fresh:
        return schema_of(fresh)


def index_path(path: Path) -> Path:
    """Return the path of the index of a log."""
    return path.with_name(f"{path.name}.index")


def _indexed(index: sqlite3.Connection) -> int:
    """Return how many bytes of the log are indexed."""
    covered: int = index.execute("SELECT indexed FROM state").fetchone()[0]
    return covered


def _unreadable(index: sqlite3.Connection) -> int:
    lines: int = index.execute("SELECT unreadable FROM state").fetchone()[0]
    return lines


def catch_up(path: Path, index: sqlite3.Connection) -> Health:
    """Index the records that were appended since the last update, in batches."""
    with open(path, "rb") as file:
        while True:
            index.execute("BEGIN IMMEDIATE")
            with index:
                start = _indexed(index)  # another process may have updated it
                file.seek(start)
                lines = list(itertools.islice(file, BATCH))
                torn = len(lines.pop()) if lines and not lines[-1].endswith(b"\n") else 0
                unreadable = _unreadable(index) + _insert_lines(path, index, start, lines)
                start += sum(map(len, lines))
                index.execute("UPDATE state SET indexed = ?, unreadable = ?", (start, unreadable))
            if len(lines) < BATCH:
                return Health(torn, unreadable)


def _insert_lines(path: Path, index: sqlite3.Connection, start: int, lines: list[bytes]) -> int:
    """Index lines of the log from this offset; return how many are no records."""
    unreadable = 0
    for line in lines:
        try:
            insert(index, Attempt.from_json(line), start, line)
        except SchemaTooNewError as error:
            raise SchemaTooNewError(f"{path}: {error}") from None
        except ConfigurationError:
            unreadable += 1
        start += len(line)
    return unreadable


def warn_of_damage(path: Path, index: sqlite3.Connection, health: Health) -> None:
    """Log warnings about damage of a log; the first unreadable line is named with its reason."""
    if health.torn:
        logger.warning("%s: the last line was cut off by a crash and is left out", path)
    if health.unreadable:
        logger.warning(
            "%s: %d lines are not records of attempts and are left out%s",
            *(path, health.unreadable, _first_unreadable(path, index)),
        )


def _first_unreadable(path: Path, index: sqlite3.Connection) -> str:
    starts = index.execute("SELECT start FROM attempts ORDER BY sequence")
    expected = next(starts, (None,))[0]
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if file.tell() - len(line) == expected:
                expected = next(starts, (None,))[0]
                continue
            try:
                Attempt.from_json(line)  # a record that a later one replaced has no row
            except ConfigurationError as error:
                return f"; the first is line {number}: {error}"
    return ""


_PLACES = ", ".join("?" for _ in range(3 + len(AttemptRow._fields)))
_INSERT = f"INSERT OR REPLACE INTO attempts (start, size, seal, {COLUMNS}) VALUES ({_PLACES})"


def insert(index: sqlite3.Connection, attempt: Attempt, start: int, line: bytes) -> None:
    """Index one attempt, replacing one with the same id.

    Args:
        index: The index.
        attempt: The attempt.
        start: Offset of its line in the log.
        line: The line, with its newline.
    """
    if REDACTED.encode() in line:  # the index has what the log has, also before it is made again
        attempt = Attempt.from_json(line)
    values = values_of(attempt.row)
    index.execute(_INSERT, (start, len(line), seal(start, values, line), *values))
