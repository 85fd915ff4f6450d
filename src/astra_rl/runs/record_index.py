"""The index of a log of attempts: a SQLite file that says where each record is.

It only repeats what the log says, so it can be deleted at any time and is made again. Whoever adds
to it holds the lock of the log; readers see what was committed and never hold up the writer.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from astra_rl.errors import AstraError, ConfigurationError
from astra_rl.evaluation.attempts import Attempt, AttemptRow, SchemaTooNewError
from astra_rl.logging import logger

_INDEX_VERSION = 2
_TABLES = """
CREATE TABLE attempts (
    sequence INTEGER PRIMARY KEY, start INTEGER NOT NULL, size INTEGER NOT NULL,
    id TEXT NOT NULL UNIQUE, phase TEXT NOT NULL, prompt_id TEXT NOT NULL, trial INTEGER NOT NULL,
    attacker TEXT NOT NULL, target TEXT NOT NULL, outcome TEXT NOT NULL, turns INTEGER NOT NULL,
    first_failing_turn INTEGER, last_turn_failed INTEGER, score REAL, logprob REAL,
    logprob_tokens INTEGER, queries_per_turn INTEGER NOT NULL, judge TEXT NOT NULL,
    judge_id TEXT NOT NULL, threshold REAL NOT NULL
);
CREATE INDEX by_score ON attempts (outcome, score DESC, sequence);
CREATE INDEX by_logprob ON attempts (outcome, logprob DESC, sequence);
CREATE TABLE state (indexed INTEGER NOT NULL, unreadable INTEGER NOT NULL);
INSERT INTO state VALUES (0, 0);
"""
DAMAGE = (sqlite3.DatabaseError, TypeError, ValueError, OverflowError)
"""What reading a damaged index may raise: SQLite itself, or values of other types than written."""
COLUMNS = ", ".join(AttemptRow._fields)


class LogInUseError(ConfigurationError):
    """Another process is writing to the log."""


class Health(NamedTuple):
    """What is wrong with the file of a log.

    Attributes:
        torn: Bytes of a last line that was cut off by a crash.
        unreadable: Lines before it that are no record of an attempt.
    """

    torn: int
    unreadable: int


def read_attempt(file: IO[bytes], start: int, size: int) -> Attempt:
    """Read the record at this place of the log."""
    file.seek(start)
    return Attempt.from_json(file.read(size))


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Be the only one who writes. The system gives the lock back when a process dies."""
    with open(path.with_name(f"{path.name}.lock"), "a+", encoding="utf-8") as file:
        try:
            _lock_file(file.fileno())
        except OSError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise LogInUseError(
                f"{path} is being written by {holder}. Wait until it is done, or choose another "
                "folder."
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


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
    """Open the index of a log without changing the log."""
    if not path.is_file():
        raise ConfigurationError(f"{path} is not there; a run writes it as it goes.")
    connection = _open_index_to_read(path)
    if connection is None or _indexed(connection) < path.stat().st_size:
        # Behind: a writer is at work, or died before it was done.
        with contextlib.suppress(LogInUseError, OSError, sqlite3.OperationalError), lock(path):
            with open_to_add(path) as index:
                health = catch_up(path, index)
            if connection is not None:
                connection.close()
            connection = resources.enter_context(
                contextlib.closing(_open_index_to_read(path) or _new_index(""))
            )
            return connection, health
    if connection is None:  # the folder cannot be written to: an index that vanishes again
        connection = resources.enter_context(contextlib.closing(_new_index("")))
        return connection, catch_up(path, connection)
    resources.enter_context(contextlib.closing(connection))
    return connection, Health(0, _unreadable(connection))


@contextlib.contextmanager
def open_to_add(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the index to add to it; a new one if there is none of this log. Needs the lock."""
    index = _index_path(path)
    known = _open_index_to_read(path)
    if known is None:
        remove_index(path)
        connection = _new_index(str(index))
    else:
        known.close()
        connection = sqlite3.connect(index)
    with contextlib.closing(connection):
        # Readers see what was committed and never hold up the writer.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        yield connection


def remove_index(path: Path) -> None:
    """Remove the index of a log; it is made again. Needs the lock."""
    index = _index_path(path)
    for end in ("", "-wal", "-shm"):
        index.with_name(index.name + end).unlink(missing_ok=True)


@contextlib.contextmanager
def reading_index(path: Path) -> Iterator[None]:
    """Make one named error of whatever a damaged index leads to inside the block.

    Raises:
        ConfigurationError: It is damaged; the message says that it can be deleted.
    """
    try:
        yield
    except AstraError:
        raise
    except DAMAGE as error:
        raise ConfigurationError(
            f"{_index_path(path)} is damaged ({error}). Delete it: it only repeats what {path} "
            "says, and is made again."
        ) from error


def _new_index(database: str) -> sqlite3.Connection:
    """Make an empty index; without a name it is a temporary file."""
    connection = sqlite3.connect(database)
    connection.executescript(_TABLES)
    connection.execute(f"PRAGMA user_version = {_INDEX_VERSION}")
    return connection


def _open_index_to_read(path: Path) -> sqlite3.Connection | None:
    """Open the index that is there; None unless it is sound and of this very log."""
    index = _index_path(path)
    if not index.is_file():
        return None
    name = index.absolute().as_uri()
    # In a folder that cannot be written to, nobody writes to the index either.
    for options in ("mode=ro", "mode=ro&immutable=1"):
        connection = None
        try:
            connection = sqlite3.connect(f"{name}?{options}", uri=True)
            if _is_index_of(connection, path):
                return connection
        except DAMAGE:
            pass
        if connection is not None:
            connection.close()
    return None


def _is_index_of(index: sqlite3.Connection, path: Path) -> bool:
    if index.execute("PRAGMA user_version").fetchone()[0] != _INDEX_VERSION:
        return False
    last = index.execute(
        "SELECT start, size, id FROM attempts ORDER BY sequence DESC LIMIT 1"
    ).fetchone()
    if _indexed(index) > path.stat().st_size:
        return False
    if last is None:
        return True
    start, size, key = last
    with open(path, "rb") as file:
        try:
            found = read_attempt(file, start, size).id
        except AstraError:
            return False
    return found == str(key)


def _index_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.index")


def _indexed(index: sqlite3.Connection) -> int:
    """Bytes of the log that the index covers."""
    covered: int = index.execute("SELECT indexed FROM state").fetchone()[0]
    return covered


def _unreadable(index: sqlite3.Connection) -> int:
    lines: int = index.execute("SELECT unreadable FROM state").fetchone()[0]
    return lines


def catch_up(path: Path, index: sqlite3.Connection) -> Health:
    """Add to the index what the log holds beyond it."""
    torn, unreadable = 0, _unreadable(index)
    with index, open(path, "rb") as file:
        start = _indexed(index)
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                torn = len(line)
                break
            try:
                insert(index, Attempt.from_json(line), start, len(line))
            except SchemaTooNewError as error:
                raise SchemaTooNewError(f"{path}: {error}") from None
            except ConfigurationError:
                unreadable += 1
            start += len(line)
        index.execute("UPDATE state SET indexed = ?, unreadable = ?", (start, unreadable))
    if torn:
        logger.warning("%s: the last line was cut off by a crash and is left out", path)
    if unreadable:
        logger.warning("%s: %d lines are no records of attempts", path, unreadable)
    return Health(torn, unreadable)


_PLACES = ", ".join("?" for _ in range(2 + len(AttemptRow._fields)))
_INSERT = f"INSERT OR REPLACE INTO attempts (start, size, {COLUMNS}) VALUES ({_PLACES})"


def insert(index: sqlite3.Connection, attempt: Attempt, start: int, size: int) -> None:
    """Add one attempt; one with the same id is replaced."""
    index.execute(_INSERT, (start, size, *attempt.row))
