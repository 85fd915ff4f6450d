"""A disk that is full or read-only: one error that names the file, whoever noticed it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from astra_rl.errors import StorageError

_CANNOT_WRITE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
)
_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
}
# How errors of the system look that come from libraries written in Rust: safetensors, tokenizers.
_RUST = re.compile(r"\(os error (\d+)\)")


@contextlib.contextmanager
def storing(path: str | Path) -> Iterator[None]:
    """Make one named error of a disk that is full or read-only, inside the block.

    Args:
        path: What is written there, a file or a folder.

    Raises:
        StorageError: It could not be written; the message says which file, why and what to do.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        reason = why_not_stored(error, Path(path))
        if reason is None:
            raise
        raise StorageError(
            f"cannot write {path}: {reason}. What was saved before is still there; make room, or "
            "make it writable."
        ) from error


def why_not_stored(error: Exception, path: Path) -> str | None:
    """Return why the system refused to write, in its words; None if the error is another one."""
    if isinstance(error, OSError):
        number = error.errno
    elif isinstance(error, sqlite3.OperationalError):
        number = _sqlite_errno(error)
    else:
        found = _RUST.search(str(error))
        number = int(found[1]) if found else None
    if number not in _CANNOT_WRITE:
        return None
    if number == errno.EIO:  # all that SQLite says of a full disk, at times
        number = _state_of_disk(path) or number
    return os.strerror(number)


def reason_of_failure(error: Exception) -> str:
    """Return why a file could not be read or made, without its path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _sqlite_errno(error: sqlite3.OperationalError) -> int | None:
    try:
        return _SQLITE.get(error.sqlite_errorcode & 0xFF)
    except AttributeError:  # the module itself raised the error, not the SQLite library
        return None


def _state_of_disk(path: Path) -> int | None:
    """Return what is wrong with the disk that a file is on, as an error number."""
    place = next((each for each in (path, *path.absolute().parents) if each.exists()), None)
    if place is None or not hasattr(os, "statvfs"):
        return None
    disk = os.statvfs(place)
    if disk.f_flag & os.ST_RDONLY:
        return errno.EROFS
    # Disks without a table of files have 0 of 0 free.
    return errno.ENOSPC if not disk.f_bavail or (disk.f_files and not disk.f_favail) else None
