"""Memory of the indexes that were verified, so that an unchanged log is verified once.

What is remembered is the status of the log and of its index: device, inode, size, and the times of
the last change. The kernel sets the change time (ctime) of a file, and no program can choose it, so
a file that was copied, replaced or modified has another status and is verified again. The record
is in the cache folder, outside of every run, and authenticated with the key of the user: nothing in
a run folder can claim to be verified.

A status proves nothing in three cases, in which nothing is remembered: a file changed so recently
that a second change could have the same time; the index has a write-ahead log, which is changed
without a trace in the file of the index; and Windows, where `st_ctime` is no change time.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from astra_rl.errors import AstraError
from astra_rl.infra.jsonio import write_atomic
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


class Status(NamedTuple):
    """Status of a log and of its index.

    Attributes:
        changed: Time of the last change of either, in seconds since 1970.
        digest: Of all that would be different after another change, authenticated.
    """

    changed: float
    digest: bytes

    @property
    def settles_in(self) -> float:
        """Seconds until the next change of a file has another time; 0 or less if it has already."""
        return SETTLED - (time.time() - self.changed)


def current_status(log: Path, index: Path) -> Status | None:
    """Return the status of a log and its index; None where it would prove nothing.

    Raises:
        OSError: A file cannot be examined.
    """
    if sys.platform == "win32":
        return None
    wal = index.with_name(f"{index.name}-wal")
    if wal.exists() and wal.stat().st_size:
        return None
    found = [log.stat(), index.stat()]
    if found[0].st_size < SMALLEST:
        return None
    facts = [
        (each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns)
        for each in found
    ]
    # With the columns: an index that an earlier version verified has others, and is made again.
    text = repr((COLUMNS, os.path.realpath(log), facts)).encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, key=user_key(), digest_size=32).digest()
    return Status(max(each.st_ctime for each in found), digest)


def status_of(log: Path, index: Path) -> bytes | None:
    """Return a digest of the status of a log and its index; None where it would prove nothing.

    Raises:
        OSError: A file cannot be examined.
    """
    status = current_status(log, index)
    return None if status is None or status.settles_in > 0 else status.digest


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
        if status_of(log, index) == status.digest:
            remember_verified(log, status.digest)


def is_verified(log: Path, status: bytes | None) -> bool:
    """Whether an index with this `status_of` was verified against the log."""
    if status is None:
        return False
    with contextlib.suppress(OSError, AstraError, ValueError):
        return hmac.compare_digest(_place(log).read_text("ascii"), status.hex())
    return False


def remember_verified(log: Path, status: bytes | None) -> None:
    """Remember that an index with this `status_of` was verified; without a cache, nothing is."""
    if status is None:
        return
    with contextlib.suppress(OSError, AstraError):
        place = _place(log)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, status.hex())


def _place(log: Path) -> Path:
    name = os.path.realpath(log).encode("utf-8", "surrogateescape")
    return cache_dir() / "verified" / hashlib.blake2b(name, digest_size=16).hexdigest()
