"""JSON that every reader accepts, written so that a crash leaves the old file or the new one.

Credentials that are known to be some are left out of all that is written; see `core.redaction`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TextIO, cast

from astra_rl.infra.redaction import learn_from_environment, redact
from astra_rl.infra.storage import storing
from astra_rl.infra.unicode import well_formed

_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def jsonable(value: Any) -> Any:
    """Return `value` in JSON's own types; NaN and infinities become None.

    Text keeps every character but lone surrogates, which no UTF-8 file can hold and which become
    U+FFFD.
    """
    if isinstance(value, Mapping):
        return {well_formed(str(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, Integral):  # numbers of numpy included
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return well_formed(value if isinstance(value, str) else str(value))


MAX_DIGITS = 300
"""A whole number of more digits is no number that anybody counted, and too large for a float."""


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text of others says: all of it is read here.

    ``NaN`` and ``Infinity``, which are no JSON but often written, are floats: who asks for a number
    must look whether it is one.

    Raises:
        ValueError: It is no JSON, nested deeper than Python can read, or holds a whole number of
            more than `MAX_DIGITS` digits.
    """
    return _parse(text, float)


def parse_own_json(text: str | bytes) -> Any:
    """Return what JSON text of this library says, which has no ``NaN``; else see `parse_json`.

    Raises:
        ValueError: As in `parse_json`, or there is a ``NaN`` or ``Infinity``.
    """
    return _parse(text, _refuse)


def _parse(text: str | bytes, constant: Callable[[str], Any]) -> Any:
    try:
        return json.loads(text, parse_constant=constant, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def write_atomic(path: str | Path, text: str) -> None:
    """Write `text` beside `path`, then rename it into place. Parent folders are made."""
    with atomic_file(path) as file:
        file.write(text)


@contextlib.contextmanager
def atomic_file(path: str | Path, *, synced: bool = True) -> Iterator[TextIO]:
    """Open a UTF-8 file beside `path` that is renamed into place once the block is done.

    If the block raises, the old file stays. Line ends are written as they are. A credential is left
    out if it is written in one piece.

    Args:
        path: The file.
        synced: Wait until it is on the disk. Without, a kill of the process leaves the old file or
            the new one all the same, but a loss of power may leave neither.

    Raises:
        StorageError: The disk is full, or read-only.
    """
    learn_from_environment()
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                yield cast(TextIO, _RedactingFile(file))
                file.flush()
                if synced:
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # a read-only disk says so above
                temporary.unlink(missing_ok=True)


class _RedactingFile:
    """What `atomic_file` gives to write to."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def write_json(data: Any, path: str | Path) -> None:
    """Write `data` as indented UTF-8 JSON, atomically."""
    write_atomic(path, indented(data))


def indented(data: Any) -> str:
    """Return `data` as indented JSON, newline included; credentials are still in it."""
    return json.dumps(jsonable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(data: Any) -> str:
    """Return `data` as one line of JSON, without the newline.

    U+0085, U+2028 and U+2029 are escaped: some readers take them for the end of a line.
    """
    return redact(unredacted_line(data))


def unredacted_line(data: Any) -> str:
    """Return the same with credentials, if it holds some: to be hashed, never to be written."""
    line = json.dumps(jsonable(data), ensure_ascii=False, allow_nan=False)
    return line.translate(_LINE_ENDS)
