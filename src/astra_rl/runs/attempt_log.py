"""The attempts of a run on disk: an append-only JSONL file, and an index to open it fast.

The JSONL file is the record; the index beside it is a SQLite file that can be deleted at any time
and is made again. One process writes, any number read, also while it writes.

A crash loses at most the attempts since the last `AttemptLog.flush`. A last line that was cut off
is left out, reported, and removed by the next writer.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from astra_rl.errors import AstraError, ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.runs.attempt_index import (
    COLUMNS,
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
    say_what_is_wrong,
)

__all__ = ["AttemptLog", "Health", "LogInUseError", "replacing_log"]

FLUSH_EVERY = 64
"""Attempts that are written between two calls of fsync."""
BATCH = 256
"""Rows of the index in memory at a time."""

# SQLite sorts missing values below all others.
_ORDERS = {
    "sequence": "sequence",
    "score": "score DESC, sequence",
    "logprob": "logprob DESC, sequence",
    "prompt": "prompt_id, trial, sequence",
}
Order = Literal["sequence", "score", "logprob", "prompt"]


class AttemptLog:
    """The attempts of a run.

    Reading holds one attempt in memory at a time. Of several records with one id the last counts;
    the others stay in the file and are not shown.

    Args:
        path: The JSONL file; it need not exist.
        write: Be the one that appends. Otherwise the file is never changed.
        flush_every: Attempts between two calls of fsync.

    Attributes:
        health: What is wrong with the file.

    Raises:
        LogInUseError: Another process, or this one, is already writing to it.
        ConfigurationError: The file cannot be opened, or holds records of a newer version.
        StorageError: It is opened to write, and the disk is full or read-only.
    """

    def __init__(
        self, path: str | Path, *, write: bool = False, flush_every: int = FLUSH_EVERY
    ) -> None:
        if flush_every < 1:
            raise ConfigurationError(f"flush_every={flush_every}; it must be at least 1.")
        self.path = Path(path)
        self.flush_every = flush_every
        self._waiting: list[tuple[Attempt, int, int]] = []
        self._resources = contextlib.ExitStack()
        self._file: IO[bytes] | None = None
        try:
            if write:
                with storing(self.path):
                    self._open_to_write()
            else:
                self._index, self.health = open_to_read(self.path, self._resources)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, AstraError):
                raise ConfigurationError(f"cannot open the log {path}: {error.strerror}") from error
            raise

    def _open_to_write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._resources.enter_context(lock(self.path, patience=PATIENCE))
        self._file = self._resources.enter_context(open(self.path, "ab"))  # noqa: SIM115
        self._indexing = self._resources.enter_context(contextlib.ExitStack())
        try:
            self._open_index()
        except DAMAGE as error:
            if isinstance(error, AstraError):
                raise
            # A full disk cannot be mended here. A reader that was stopped while it added to the
            # index can: it is left with the old one.
            if isinstance(error, sqlite3.OperationalError) and not is_busy(error):
                raise
            self._make_index_again()
        if self.health.torn:
            self._file.truncate(self.path.stat().st_size - self.health.torn)
        self._file.seek(0, os.SEEK_END)

    def _open_index(self) -> None:
        self._index = self._indexing.enter_context(open_to_add(self.path))
        self.health = catch_up(self.path, self._index)
        say_what_is_wrong(self.path, self.health)

    def _make_index_again(self) -> None:
        logger.warning("the index of %s cannot be used and is made again", self.path)
        self._indexing.close()
        remove_index(self.path)
        self._open_index()

    def append(self, attempt: Attempt) -> None:
        """Add an attempt. It is safe on disk after the next flush, by itself or by `flush`.

        Raises:
            ConfigurationError: The log was not opened for writing, or is closed.
            StorageError: The disk is full, or read-only.
        """
        if self._file is None or self._file.closed:
            raise ConfigurationError(f"{self.path} is not open for writing; pass write=True.")
        line = attempt.to_json().encode() + b"\n"
        self._waiting.append((attempt, self._file.tell(), len(line)))
        with storing(self.path):
            self._file.write(line)
        if len(self._waiting) >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Make everything appended so far safe on disk and visible to readers.

        Raises:
            StorageError: The disk is full, or read-only.
        """
        if self._file is not None and self._waiting:
            with storing(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._index_waiting(self._file.tell())

    def _index_waiting(self, end: int) -> None:
        """Add to the index what was written up to this place."""
        try:
            with self._index:
                for attempt, start, size in self._waiting:
                    insert(self._index, attempt, start, size)
                self._index.execute("UPDATE state SET indexed = ?", (end,))
        except sqlite3.OperationalError as error:
            if is_busy(error):  # a reader that was stopped in the middle of adding to it
                return
            raise  # for instance a full disk
        except sqlite3.DatabaseError:  # damaged; the log itself has everything
            self._make_index_again()
        self._waiting.clear()

    def close(self) -> None:
        """Flush, and let others write."""
        try:
            if self._file is not None and not self._file.closed:
                self.flush()
        finally:
            with storing(self.path):
                self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    def get(self, key: str) -> Attempt:
        """Read the attempt with this id.

        Raises:
            KeyError: There is none.
        """
        with reading_index(self.path):
            found = self._index.execute("SELECT start, size FROM attempts WHERE id = ?", (key,))
            place = found.fetchone()
        if place is None:
            raise KeyError(key)
        with reading_index(self.path), open(self.path, "rb") as file:
            return read_attempt(file, *place)

    def rows(
        self,
        *,
        order: Order = "sequence",
        limit: int | None = None,
        offset: int = 0,
        **equal: str,
    ) -> Iterator[AttemptRow]:
        """Yield what statistics need of the attempts, from the index alone.

        Args:
            order: As written, the highest score first, the most likely first, or by prompt and
                trial.
            limit: At most so many.
            offset: Leave out so many first.
            equal: Only attempts that have these values, by any of ``phase``, ``attacker``,
                ``target``, ``outcome``, ``prompt_id``.
        """
        for batch in self._select(COLUMNS, order, limit, offset, equal):
            with reading_index(self.path):
                rows = [_row(values) for values in batch]
            yield from rows

    def attempts(
        self,
        *,
        order: Order = "sequence",
        limit: int | None = None,
        offset: int = 0,
        **equal: str,
    ) -> Iterator[Attempt]:
        """Yield whole attempts, read from the file one by one; see `rows` for the arguments."""
        with open(self.path, "rb") as file:
            for batch in self._select("start, size", order, limit, offset, equal):
                for start, size in batch:
                    with reading_index(self.path):
                        attempt = read_attempt(file, start, size)
                    yield attempt

    def _select(
        self, columns: str, order: str, limit: int | None, offset: int, equal: dict[str, str]
    ) -> Iterator[list[tuple[Any, ...]]]:
        known = ("phase", "attacker", "target", "outcome", "prompt_id")
        if order not in _ORDERS or not set(equal) <= set(known):
            raise ConfigurationError(
                f"order={order!r}, filters {sorted(equal)}; orders are {', '.join(_ORDERS)} and "
                f"filters {', '.join(known)}."
            )
        where = " AND ".join(f"{name} = ?" for name in equal) or "1"
        query = (
            f"SELECT {columns} FROM attempts WHERE {where} ORDER BY {_ORDERS[order]} "
            "LIMIT ? OFFSET ?"
        )
        values = [str(value) for value in equal.values()]
        with reading_index(self.path):
            found = self._index.execute(query, (*values, -1 if limit is None else limit, offset))
        while True:
            with reading_index(self.path):  # not around a yield: what others raise is theirs
                batch = found.fetchmany(BATCH)
            if not batch:
                return
            yield batch


_OUTCOME = AttemptRow._fields.index("outcome")
_LAST_TURN_FAILED = AttemptRow._fields.index("last_turn_failed")


def _row(values: tuple[Any, ...]) -> AttemptRow:
    """Turn what SQLite holds into what was put in: it knows neither outcomes nor truth values."""
    fields = list(values)
    fields[_OUTCOME] = Outcome(fields[_OUTCOME])
    if fields[_LAST_TURN_FAILED] is not None:
        fields[_LAST_TURN_FAILED] = bool(fields[_LAST_TURN_FAILED])
    return AttemptRow._make(fields)


@contextlib.contextmanager
def replacing_log(path: Path) -> Iterator[AttemptLog]:
    """Write a log beside `path`; when the block ends well it takes its place.

    If the block raises, the log that was there stays.

    Raises:
        LogInUseError: Another process is doing the same, or writes to the log that is there.
        StorageError: The disk is full, or read-only.
    """
    beside = path.with_name(f".{path.name}")
    with lock(path), storing(path):
        beside.unlink(missing_ok=True)  # of a process that was killed
        try:
            with AttemptLog(beside, write=True) as log:
                yield log
            remove_index(path)
            beside.replace(path)
            index_path(beside).replace(index_path(path))
        finally:
            for left in path.parent.glob(f"{beside.name}*"):
                left.unlink(missing_ok=True)
