"""Files that a user names: ``~`` in their paths, and reading them within bounds."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import select
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from astra_rl.errors import ConfigurationError

MOST_STREAMED_BYTES = 256_000_000
"""Most bytes that are read from a pipe or a device, whose size is not known before."""
SILENCE = 60.0
"""Most seconds to wait for the next bytes of a pipe."""
_CHUNK = 1 << 16
_noted: ContextVar[dict[str, str] | None] = ContextVar("noted_files", default=None)


def user_path(path: str | Path) -> Path:
    """Return a path with ``~`` and ``~user`` expanded.

    A shell does not expand them in quotes, in ``--output=~/run`` and in files.

    Raises:
        ConfigurationError: There is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot expand {str(path)!a}: {error} Give the path from the root of the file system."
        ) from error


def read_user_file(path: str | Path) -> bytes:
    """Read a file that a user names; a pipe or a device is read within bounds.

    Raises:
        OSError: It cannot be read; nothing was written to the pipe for `SILENCE` seconds, or the
            pipe or device has more than `MOST_STREAMED_BYTES` bytes.
        ConfigurationError: There is no such home folder.
    """
    data = _read(user_path(path))
    noted = _noted.get()
    if noted is not None:
        noted[str(path)] = hashlib.sha256(data).hexdigest()
    return data


@contextmanager
def noting_files() -> Iterator[dict[str, str]]:
    """Yield the SHA-256 of each file that `read_user_file` reads inside the block.

    The names are the paths as they are given. Files that other threads read are not noted.
    """
    noted: dict[str, str] = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def _read(path: Path) -> bytes:
    kind = path.stat().st_mode
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
        return path.read_bytes()
    is_pipe = stat.S_ISFIFO(kind)
    # Opening a pipe without a writer would wait for one.
    descriptor = os.open(path, os.O_RDONLY | (os.O_NONBLOCK if is_pipe else 0))
    with open(descriptor, "rb", buffering=0) as file:
        return _read_stream(file, path, is_pipe=is_pipe)


def read_user_text(path: str | Path, *, encoding: str = "utf-8") -> str:
    """Read a text file like `read_user_file`; its line ends become newlines.

    Raises:
        OSError: See `read_user_file`.
        UnicodeDecodeError: It is not in the encoding.
    """
    return io.TextIOWrapper(io.BytesIO(read_user_file(path)), encoding=encoding).read()


def _read_stream(file: io.FileIO, path: Path, *, is_pipe: bool) -> bytes:
    data = bytearray()
    while True:
        if is_pipe and not select.select([file], [], [], SILENCE)[0]:
            raise OSError(
                errno.ETIMEDOUT,
                f"nothing was written to this pipe for {SILENCE:g} seconds",
                str(path),
            )
        part = file.read(_CHUNK)
        if part is None:  # another reader was faster
            time.sleep(0.01)
        elif not part:
            return bytes(data)
        else:
            data += part
        if len(data) > MOST_STREAMED_BYTES:
            reason = f"more than {MOST_STREAMED_BYTES} bytes of a file without a size"
            raise OSError(errno.EFBIG, reason, str(path))
