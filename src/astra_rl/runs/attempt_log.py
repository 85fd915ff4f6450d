"""Log of attempts: an append-only JSONL file with a SQLite index.

The JSONL file is authoritative; the index can be deleted at any time and is rebuilt. One process
writes; any number of processes read concurrently.

A killed process loses no attempt that it appended, a loss of power at most those since the last
`AttemptLog.flush`. An incomplete last line is ignored and reported, and the next writer removes it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import IO, Any, Literal, NamedTuple, Self

from astra_rl.core.seeding import derive_seed
from astra_rl.errors import AstraError, ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.runs.attempt_index import (
    DAMAGE,
    PATIENCE,
    Health,
    LogInUseError,
    catch_up,
    index_path,
    insert,
    is_busy,
    lock,
    open_to_add,
    open_to_read,
    read_attempt,
    reading_index,
    remove_index,
    warn_of_damage,
)
from astra_rl.runs.index_seal import COLUMNS
from astra_rl.runs.verified_logs import Status, WriterNote, current_status, remember_written

__all__ = ["AttemptLog", "Health", "LogInUseError", "replacing_log"]

FLUSH_EVERY = 64
"""Number of attempts between two calls of fsync."""
BATCH = 256
"""Number of index rows in memory at a time."""

# SQLite sorts missing values below all others.
_ORDERS = {
    "sequence": "sequence",
    "score": "score DESC, sequence",
    "logprob": "logprob DESC, sequence",
    "prompt": "prompt_id, trial, sequence",
}
Order = Literal["sequence", "score", "logprob", "prompt"]


class NumberedRow(NamedTuple):
    """An attempt without its texts, and its number in the order written."""

    number: int
    row: AttemptRow


class AttemptLog:
    """Log of the attempts of a run.

    Reading holds one attempt in memory at a time. If several records have the same id, only the
    last one is read; the others stay in the file.

    Args:
        path: The JSONL file. A writer creates it if it does not exist.
        write: Open for appending; there can be one writer. Readers never change the file.
        flush_every: Number of attempts between two calls of fsync.

    Attributes:
        health: Damage found in the file.

    Raises:
        LogInUseError: The log already has a writer.
        ConfigurationError: The file cannot be opened, or has records of a newer version.
        StorageError: It is opened for writing, and the disk is full or read-only.
    """

    def __init__(
        self, path: str | Path, *, write: bool = False, flush_every: int = FLUSH_EVERY
    ) -> None:
        if flush_every < 1:
            raise ConfigurationError(f"flush_every={flush_every}; it must be at least 1.")
        self.path = Path(path)
        self.flush_every = flush_every
        self._waiting: list[tuple[Attempt, int, bytes]] = []
        self._is_remembered = True
        self._resources = contextlib.ExitStack()
        self._file: IO[bytes] | None = None
        try:
            if write:
                with storing(self.path):
                    self._open_to_write()
            else:
                self._index, self.health = open_to_read(self.path, self._resources)
        except BaseException as error:
            self._file = None  # closed with the rest; the index may not have the whole log
            self.close()
            if isinstance(error, OSError) and not isinstance(error, AstraError):
                raise ConfigurationError(f"cannot open the log {path}: {error.strerror}") from error
            raise

    def _open_to_write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._resources.enter_context(lock(self.path, patience=PATIENCE))
        # Without a buffer: what is appended is in the file if the process is killed.
        file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._file = self._resources.enter_context(file)
        note = WriterNote(self.path, index_path(self.path), self._file.fileno())
        self._note = self._resources.enter_context(contextlib.closing(note))
        self._indexing = self._resources.enter_context(contextlib.ExitStack())
        try:
            self._open_index()
        except DAMAGE as error:
            if isinstance(error, AstraError):
                raise
            # A full disk cannot be handled here. An index locked by a suspended reader can: it is
            # rebuilt, and that reader keeps the old one.
            if isinstance(error, sqlite3.OperationalError) and not is_busy(error):
                raise
            self._make_index_again()
        self._note.begin()  # others may have changed what was verified before
        if self.health.torn:
            self._file.truncate(self.path.stat().st_size - self.health.torn)
        self._file.seek(0, os.SEEK_END)
        self._note.update()

    def _open_index(self) -> None:
        self._index = self._indexing.enter_context(open_to_add(self.path))
        self.health = catch_up(self.path, self._index)
        warn_of_damage(self.path, self._index, self.health)

    def _make_index_again(self) -> None:
        logger.warning("the index of %s cannot be used and is made again", self.path)
        self._indexing.close()
        remove_index(self.path)
        self._open_index()

    def append(self, attempt: Attempt) -> None:
        """Append an attempt; after the next flush it also survives a loss of power.

        The flush is automatic, or by `flush`. An attempt that cannot be written whole is not
        written at all.

        Raises:
            ConfigurationError: The log was not opened for writing, or is closed.
            StorageError: The disk is full, or read-only.
        """
        if self._file is None or self._file.closed:
            raise ConfigurationError(f"{self.path} is not open for writing; pass write=True.")
        line = attempt.to_json().encode() + b"\n"
        start = self._file.tell()
        self._note.begin()
        waiting = len(self._waiting)
        with storing(self.path):
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[self._file.write(rest) :]
                self._waiting.append((attempt, start, line))
            except BaseException:  # also an interrupt: a line in the log has a row in the index
                del self._waiting[waiting:]
                self._file.truncate(start)
                self._file.seek(start)
                raise
        self._remember()
        if len(self._waiting) >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Make all appended attempts durable and visible to readers.

        Raises:
            StorageError: The disk is full, or read-only.
        """
        if self._file is not None and self._waiting:
            self._note.begin()
            with storing(self.path):
                os.fsync(self._file.fileno())
                self._index_waiting(self._file.tell())
            self._remember()

    def _remember(self) -> None:
        if self._is_remembered:
            self._note.update()

    def _index_waiting(self, end: int) -> None:
        """Index the attempts that were written up to this offset."""
        try:
            with self._index:
                for attempt, start, line in self._waiting:
                    insert(self._index, attempt, start, line)
                self._index.execute("UPDATE state SET indexed = ?", (end,))
        except sqlite3.OperationalError as error:
            if is_busy(error):  # locked by a suspended reader
                return
            raise  # for instance a full disk
        except sqlite3.DatabaseError:  # damaged; the log is complete
            self._make_index_again()
        self._waiting.clear()

    def close(self) -> None:
        """Flush, and release the lock.

        The writer of a large log waits for at most two seconds, so that its next reader need not
        verify the index, see `astra_rl.runs.verified_logs`.
        """
        written: Status | None = None
        try:
            if self._file is not None and not self._file.closed:
                self.flush()
                written = self._close_index()
        finally:
            with storing(self.path):
                self._resources.close()
        if self._is_remembered:
            remember_written(self.path, index_path(self.path), written)

    def _close_index(self) -> Status | None:
        """Close the index of a writer; return the status of the files if it has the whole log."""
        assert self._file is not None
        if self._waiting or self.health.torn or not self._note.is_own:
            return None
        with contextlib.suppress(OSError, sqlite3.DatabaseError):
            # An open reader keeps the write-ahead log; empty, it changes nothing in the index.
            self._index.execute("PRAGMA busy_timeout = 0")
            self._index.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._indexing.close()
            ours, theirs = os.fstat(self._file.fileno()), self.path.stat()
            same = (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
            if same and theirs.st_size == self._file.tell():
                return current_status(self.path, index_path(self.path))
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __len__(self) -> int:
        with reading_index(self.path):
            count: int = self._index.execute("SELECT count(*) FROM attempts").fetchone()[0]
        return count

    def __contains__(self, key: str) -> bool:
        with reading_index(self.path):
            found = self._index.execute("SELECT 1 FROM attempts WHERE id = ?", (key,))
            return found.fetchone() is not None

    def __iter__(self) -> Iterator[Attempt]:
        return self.attempts()

    def count(self, **equal: str) -> int:
        """Return the number of attempts; see `rows` for the filters."""
        [[(count,)]] = self._select("count(*)", "sequence", None, 0, equal)
        return int(count)

    def get(self, key: str) -> Attempt:
        """Read the attempt with this id.

        Raises:
            KeyError: There is no such attempt.
        """
        found = self.find(key)
        if found is None:
            raise KeyError(key)
        return found

    def find(self, key: str) -> Attempt | None:
        """Read the attempt with this id; None if there is no such attempt."""
        with reading_index(self.path):
            found = self._index.execute("SELECT start, size FROM attempts WHERE id = ?", (key,))
            place = found.fetchone()
            return None if place is None else read_attempt(self._reader, *place)

    @functools.cached_property
    def _reader(self) -> IO[bytes]:
        return self._resources.enter_context(open(self.path, "rb"))

    def rows(
        self,
        *,
        order: Order = "sequence",
        limit: int | None = None,
        offset: int = 0,
        **equal: str,
    ) -> Iterator[AttemptRow]:
        """Yield the attempts without their texts, from the index alone.

        Args:
            order: ``"sequence"`` (as written), ``"score"`` or ``"logprob"`` (highest first), or
                ``"prompt"`` (by prompt and trial).
            limit: Maximum number of rows.
            offset: Number of rows to skip.
            equal: Filters by exact value of any of ``phase``, ``attacker``,
                ``target``, ``outcome``, ``prompt_id``.
        """
        for batch in self._select(COLUMNS, order, limit, offset, equal):
            with reading_index(self.path):
                rows = [_row(values) for values in batch]
            yield from rows

    def numbered(self, *, order: Order = "sequence", **equal: str) -> Iterator[NumberedRow]:
        """Yield the attempts without their texts, each with its number in the order written.

        See `rows` for the arguments.
        """
        for batch in self._select(f"sequence, {COLUMNS}", order, None, 0, equal):
            with reading_index(self.path):
                rows = [NumberedRow(number, _row(tuple(values))) for number, *values in batch]
            yield from rows

    def distinct(self, *fields: str, **equal: str) -> set[tuple[Any, ...]]:
        """Return the different values that these fields of `AttemptRow` have together.

        See `rows` for the filters. A boolean is an integer, and an outcome a text.
        """
        found = self._select(f"DISTINCT {', '.join(fields)}", "sequence", None, 0, equal)
        return {tuple(values) for batch in found for values in batch}

    def attempts(
        self,
        *,
        order: Order = "sequence",
        limit: int | None = None,
        offset: int = 0,
        **equal: str,
    ) -> Iterator[Attempt]:
        """Yield complete attempts, read one by one; see `rows` for the arguments."""
        with open(self.path, "rb") as file:
            for batch in self._select("start, size", order, limit, offset, equal):
                for start, size in batch:
                    with reading_index(self.path):
                        attempt = read_attempt(file, start, size)
                    yield attempt

    def shuffled(self, seed: int, **equal: str) -> Iterator[Attempt]:
        """Yield complete attempts in random order, so that the first ones are a random sample.

        Args:
            seed: Determines the order.
            equal: Filters, see `rows`.
        """
        places = [
            place
            for batch in self._select("start, size", "sequence", None, 0, equal)
            for place in batch
        ]
        Random(derive_seed(seed, "order of attempts")).shuffle(places)
        with open(self.path, "rb") as file:
            for start, size in places:
                with reading_index(self.path):
                    attempt = read_attempt(file, start, size)
                yield attempt

    def _select(
        self, columns: str, order: Order, limit: int | None, offset: int, equal: dict[str, str]
    ) -> Iterator[list[tuple[Any, ...]]]:
        known = ("phase", "attacker", "target", "outcome", "prompt_id")
        if order not in _ORDERS or not set(equal) <= set(known):
            raise ConfigurationError(
                f"order={order!r}, filters {sorted(equal)}; orders are {', '.join(_ORDERS)} and "
                f"filters {', '.join(known)}."
            )
        query = f"{_query(columns, order, list(equal))} LIMIT :limit OFFSET :offset"
        values = {name: str(value) for name, value in equal.items()}
        part = {"limit": -1 if limit is None else limit, "offset": offset}
        with reading_index(self.path):
            found = self._index.execute(query, {**values, **part})
        width = columns.count(",") + 1
        while True:
            with reading_index(self.path):  # not around the yield, where callers may raise
                batch = found.fetchmany(BATCH)
            if not batch:
                return
            yield [row[:width] for row in batch]


def _query(columns: str, order: Order, equal: Sequence[str]) -> str:
    """Return a query for these columns in this order; more columns may follow them."""
    where = " AND ".join(f"{name} = :{name}" for name in equal) or "1"
    if order not in ("score", "logprob") or "outcome" in equal:
        return f"SELECT {columns} FROM attempts WHERE {where} ORDER BY {_ORDERS[order]}"
    # The indexes begin with the outcome: SQLite merges those of all outcomes, without sorting.
    ranked = f"SELECT {columns}, {order} AS ranked, sequence AS place FROM attempts WHERE {where}"
    parts = (f"{ranked} AND outcome = '{outcome}'" for outcome in Outcome)
    return f"{' UNION ALL '.join(parts)} ORDER BY ranked DESC, place"


_OUTCOME = AttemptRow._fields.index("outcome")
_LAST_TURN_FAILED = AttemptRow._fields.index("last_turn_failed")


def _row(values: tuple[Any, ...]) -> AttemptRow:
    """Convert SQLite values, which have neither outcomes nor booleans, to an `AttemptRow`."""
    fields = list(values)
    fields[_OUTCOME] = Outcome(fields[_OUTCOME])
    if fields[_LAST_TURN_FAILED] is not None:
        fields[_LAST_TURN_FAILED] = bool(fields[_LAST_TURN_FAILED])
    return AttemptRow._make(fields)


@contextlib.contextmanager
def replacing_log(path: Path) -> Iterator[AttemptLog]:
    """Write a new log that replaces the one at `path` when the block ends without an error.

    If the block raises, the old log is kept.

    Raises:
        LogInUseError: Another process writes to the old log, or replaces it.
        StorageError: The disk is full, or read-only.
    """
    beside = path.with_name(f".{path.name}")
    with storing(path), lock(path):
        beside.unlink(missing_ok=True)  # of a process that was killed
        try:
            with AttemptLog(beside, write=True) as log:
                log._is_remembered = False  # under its later name
                yield log
            remove_index(path)
            beside.replace(path)
            index_path(beside).replace(index_path(path))
            status = current_status(path, index_path(path))
        finally:
            for left in path.parent.glob(f"{beside.name}*"):
                left.unlink(missing_ok=True)
    remember_written(path, index_path(path), status)
