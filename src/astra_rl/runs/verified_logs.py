"""Memory of the indexes that were verified, so that an unchanged log is verified once.

What is remembered is the status of the log and of its index: device, inode, size, and the times of
the last change. The kernel sets the change time (ctime) of a file, and no program can choose it, so
a file that was copied, replaced or modified has another status and is verified again. The record
is in the cache folder, outside of every run, and authenticated with the key of the user: nothing in
a run folder can claim to be verified.

A status proves nothing in two cases, in which nothing is remembered: a file changed so recently
that a second change could have the same time; and Windows, where `st_ctime` is no change time.

A writer keeps its record current with every attempt (`WriterNote`), so that the log of a run in
progress, or of one that was killed, is not verified from its beginning: what the index lacks is
read, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import sys
import time
from pathlib import Path
from typing import IO, NamedTuple

from astra_rl.errors import AstraError
from astra_rl.infra.storage import cache_dir
from astra_rl.infra.user_key import user_key
from astra_rl.runs.index_seal import COLUMNS

SMALLEST = 1 << 20
"""Bytes of the smallest log that is remembered; verifying a smaller one takes milliseconds."""
WRITTEN = 32 << 20
"""Bytes of the smallest log that is remembered by its writer; verifying a smaller one takes less
time than waiting until its status is settled."""
SETTLED = 2.0
"""Seconds since the last change of a file after which its next change has another time."""
SETTLED_IF_EXACT = 0.1
"""The same for a file whose change time shows that the file system keeps fractions of a
hundredth of a second."""
_HUNDREDTH = 10_000_000
"""A hundredth of a second in nanoseconds."""


class Stamp(NamedTuple):
    """What would be different after another change of a file.

    Attributes:
        device: Device of the file system.
        inode: Number of the file.
        size: In bytes.
        modified: Time of the last change of the content, in nanoseconds since 1970.
        changed: Change time, which no program can choose, likewise.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """Return the stamp in a result of `os.stat`."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def is_exact(self) -> bool:
        """Whether the next change, a hundredth of a second later, has another time."""
        return self.changed % _HUNDREDTH != 0

    @property
    def settles_in(self) -> float:
        """Seconds until the next change has another time; 0 or less if it has already."""
        settled = min(SETTLED, SETTLED_IF_EXACT) if self.is_exact else SETTLED
        return settled - (time.time() - self.changed / 1e9)


class Status(NamedTuple):
    """Status of a log and of its index.

    Attributes:
        log: The log.
        beside: The index, and its write-ahead log unless it is empty.
    """

    log: Stamp
    beside: tuple[Stamp, ...]

    @property
    def settles_in(self) -> float:
        """Seconds until the next change of a file shows; 0 or less if it does already."""
        return max(each.settles_in for each in (self.log, *self.beside))

    @property
    def is_exact(self) -> bool:
        """Whether all times are exact, see `Stamp`."""
        return all(each.is_exact for each in (self.log, *self.beside))

    def digest(self, name: str) -> str:
        """Return an authenticated digest.

        Args:
            name: Real path of the log.
        """
        # With the columns: an index that an earlier version verified has others, and is made again.
        facts = (COLUMNS, name, [tuple(each) for each in (self.log, *self.beside)])
        text = repr(facts).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, key=user_key(), digest_size=32).hexdigest()


def current_status(log: Path, index: Path) -> Status | None:
    """Return the status of a log and its index; None where it would prove nothing.

    Raises:
        OSError: A file cannot be examined.
    """
    return _status(Stamp.of(log.stat()), index)


def _status(log: Stamp, index: Path) -> Status | None:
    if sys.platform == "win32" or log.size < SMALLEST:
        return None
    parts = [Stamp.of(index.stat())]
    with contextlib.suppress(FileNotFoundError):
        ahead = Stamp.of(index.with_name(f"{index.name}-wal").stat())
        parts += [ahead] if ahead.size else []
    return Status(log, tuple(parts))


def settled_stamp(log: Path) -> Stamp | None:
    """Return the stamp of a log whose next change will show; None if it may not.

    A log of exact times, which may have a writer, is waited for: a tenth of a second at most.

    Raises:
        OSError: The file cannot be examined.
    """
    stamp = Stamp.of(log.stat())
    if stamp.size >= SMALLEST and stamp.is_exact:
        time.sleep(min(SETTLED_IF_EXACT, max(0.0, stamp.settles_in)))
        stamp = Stamp.of(log.stat())
    return stamp if stamp.settles_in <= 0 else None


def remember_indexed(log: Path, index: Path, before: Stamp | None) -> None:
    """Remember an index that this process has made, or brought up to date, from a log.

    Args:
        log: The log.
        index: Its index.
        before: `settled_stamp` of the log before it was read.
    """
    with contextlib.suppress(OSError):
        status = current_status(log, index)
        if status is not None and status.log == before and status.is_exact:
            remember_verified(log, status)


class WriterNote:
    """Memory of a log that is being written, for readers and for the time after a kill.

    The writer made each row of the index from the line that it wrote, so nothing needs to be
    verified. Nothing is remembered if the times of the file system are not exact, and nothing more
    once another process has changed the log.

    Args:
        log: The log.
        index: Its index.
        file: Descriptor of the log.

    Attributes:
        is_own: Whether nobody else has changed the log.
    """

    def __init__(self, log: Path, index: Path, file: int) -> None:
        self.is_own = True
        self._path, self._name = log, os.path.realpath(log)
        self._index, self._log = index, file
        self._known = Stamp.of(os.fstat(file))
        self._file: IO[bytes] | None = None

    def begin(self) -> None:
        """Find out, before the writer goes on, whether another process has changed the log."""
        self.is_own = self.is_own and Stamp.of(os.fstat(self._log)) == self._known

    def update(self) -> None:
        """Remember the log and the index as the writer has just left them."""
        with contextlib.suppress(OSError, AstraError):
            self._known = Stamp.of(os.fstat(self._log))
            status = _status(self._known, self._index) if self.is_own else None
            if status is not None and status.is_exact:
                if self._file is None:
                    place = _place(self._path)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.touch()
                    self._file = open(place, "r+b", buffering=0)  # noqa: SIM115
                self._file.seek(0)
                self._file.write(status.digest(self._name).encode("ascii"))

    def close(self) -> None:
        """Close the file of the record."""
        if self._file is not None:
            self._file.close()


def remember_written(log: Path, index: Path, status: Status | None) -> None:
    """Remember a large index that this process has written itself, from the lines it wrote.

    It waits until the status is settled, so that every later change shows.

    Args:
        log: The log.
        index: Its index.
        status: Their `current_status` right after the last write, under the lock of the log.
    """
    with contextlib.suppress(OSError):
        if status is None or log.stat().st_size < WRITTEN:
            return
        time.sleep(min(SETTLED, max(0.0, status.settles_in)))
        if current_status(log, index) == status:
            remember_verified(log, status)


def is_verified(log: Path, status: Status | None) -> bool:
    """Whether an index with this status was verified against the log."""
    if status is None:
        return False
    with contextlib.suppress(OSError, AstraError, ValueError):
        known = _place(log).read_text("ascii")
        return hmac.compare_digest(known, status.digest(os.path.realpath(log)))
    return False


def remember_verified(log: Path, status: Status | None) -> None:
    """Remember that an index with this status was verified; without a cache, nothing is."""
    if status is None:
        return
    with contextlib.suppress(OSError, AstraError):
        place = _place(log)
        place.parent.mkdir(parents=True, exist_ok=True)
        # In place: a writer has the file open. One that is written in part is no digest.
        place.write_text(status.digest(os.path.realpath(log)), "ascii")


def _place(log: Path) -> Path:
    name = os.path.realpath(log).encode("utf-8", "surrogateescape")
    return cache_dir() / "verified" / hashlib.blake2b(name, digest_size=16).hexdigest()
