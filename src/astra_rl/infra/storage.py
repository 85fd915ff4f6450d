"""A full or read-only disk as one exception that names the file."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from astra_rl.errors import ConfigurationError, StorageError

_CANNOT_WRITE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
)
_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
}
# Operating system errors in messages of Rust libraries (safetensors, tokenizers).
_RUST = re.compile(r"\(os error (\d+)\)")


def cache_dir() -> Path:
    """Return the cache folder of the user: ``$ASTRA_RL_CACHE``, or ``~/.cache/astra_rl``.

    Raises:
        ConfigurationError: The user has no home folder, and no variable names a folder.
    """
    # The XDG specification treats an empty variable as unset.
    chosen, xdg = os.environ.get("ASTRA_RL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(xdg or Path.home() / ".cache") / "astra_rl"
    except RuntimeError as error:
        raise ConfigurationError(
            f"no cache folder: {error} Set ASTRA_RL_CACHE to a folder that can be written."
        ) from error


@contextlib.contextmanager
def storing(path: str | Path) -> Iterator[None]:
    """Raise `StorageError` if the disk is full or read-only inside the block.

    Args:
        path: The file or folder that is written.

    Raises:
        StorageError: It cannot be written; the message has the file, the cause and what to do.
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
            f"cannot write {path}: {reason}. Earlier files are intact. Free disk space, or make "
            "the path writable."
        ) from error


def why_not_stored(error: Exception, path: Path) -> str | None:
    """Return why the operating system refused to write; None for other errors."""
    if isinstance(error, OSError):
        number = error.errno
    elif isinstance(error, sqlite3.OperationalError):
        number = _sqlite_errno(error)
    else:
        found = _RUST.search(str(error))
        number = int(found[1]) if found else None
    if number not in _CANNOT_WRITE:
        return None
    if number == errno.EIO:  # SQLite may report a full disk as an I/O error
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
    """Return the errno of a full or read-only disk; None if the disk is neither."""
    place = next((each for each in (path, *path.absolute().parents) if each.exists()), None)
    if place is None or not hasattr(os, "statvfs"):
        return None
    disk = os.statvfs(place)
    if disk.f_flag & os.ST_RDONLY:
        return errno.EROFS
    # File systems without inodes report 0 of 0 free.
    return errno.ENOSPC if not disk.f_bavail or (disk.f_files and not disk.f_favail) else None
