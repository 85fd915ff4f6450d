"""Strict JSON, and atomic writes with redacted credentials; see `astra_rl.infra.redaction`."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from astra_rl.infra.redaction import learn_from_environment, redact
from astra_rl.infra.storage import storing
from astra_rl.infra.unicode import well_formed

_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def jsonable(value: Any) -> Any:
    """Return `value` as JSON types; NaN and infinities become None.

    Lone surrogates, which UTF-8 cannot encode, become U+FFFD.
    """
    kind = type(value)  # most values; what follows is slower, and for all others
    if kind is str:
        return well_formed(value)
    if value is None or kind is int or kind is bool:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is list:
        return [jsonable(item) for item in value]
    if kind is dict or isinstance(value, Mapping):
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
"""Most digits of an integer; longer ones are refused as too large for a float."""


MAX_DEPTH = 100
"""Most levels of lists and objects; deeper values are refused, so that recursion over them ends."""


def parse_json(text: str | bytes) -> Any:
    """Parse untrusted JSON.

    ``NaN`` and ``Infinity``, which are not JSON but common, become floats; check that a number is
    finite where that matters.

    Raises:
        ValueError: It is not JSON, has more than `MAX_DEPTH` levels, or an integer of more than
            `MAX_DIGITS` digits.
    """
    return _parse(text, float)


def parse_json_prefix(text: str) -> tuple[Any, str]:
    """Parse the untrusted JSON value that a text begins with; return it and the text after it.

    Raises:
        ValueError: As in `parse_json`.
    """
    text = text.lstrip()
    try:
        data, end = _PREFIXES.raw_decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if _brackets(text[:end]) > MAX_DEPTH:
        check_depth(data)
    return data, text[end:]


def parse_own_json(text: str | bytes) -> Any:
    """Parse JSON that this library wrote, which has no ``NaN``; else like `parse_json`.

    Raises:
        ValueError: As in `parse_json`, or there is a ``NaN`` or ``Infinity``.
    """
    return _parse(text, _refuse)


def parse_reply_json(text: str | bytes) -> Any:
    """Parse the reply of an endpoint: like `parse_json`, but too long integers are infinite.

    So one absurd number, as in the usage, does not discard the text beside it.

    Raises:
        ValueError: It is not JSON, or is nested too deeply.
    """
    return _parse(text, float, _whole_or_infinite)


def _parse(
    text: str | bytes, constant: Callable[[str], Any], whole: Callable[[str], Any] | None = None
) -> Any:
    try:
        data = json.loads(text, parse_constant=constant, parse_int=whole or _whole)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if _brackets(text) > MAX_DEPTH:
        check_depth(data)
    return data


def _brackets(text: str | bytes) -> int:
    """Return the number of opening brackets: there are no more levels. UTF-16 has them too."""
    if isinstance(text, str):
        return text.count("[") + text.count("{")
    return text.count(b"[") + text.count(b"{")


def check_depth(data: Any) -> None:
    """Check that a JSON value has at most `MAX_DEPTH` levels; without recursion.

    Raises:
        ValueError: It has more.
    """
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(MAX_DEPTH):
        parts = (each.values() if isinstance(each, dict) else each for each in level)
        level = [one for part in parts for one in part if isinstance(one, dict | list)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


_PREFIXES = json.JSONDecoder(parse_constant=float, parse_int=_whole)


def _whole_or_infinite(digits: str) -> int | float:
    return (
        int(digits)
        if len(digits) <= MAX_DIGITS
        else math.copysign(math.inf, -1 if digits[0] == "-" else 1)
    )


def write_atomic(path: str | Path, text: str) -> None:
    """Write `text` beside `path`, then rename it into place. Parent folders are made."""
    with atomic_file(path) as file:
        file.write(text)


@contextlib.contextmanager
def atomic_file(path: str | Path, *, synced: bool = True) -> Iterator[TextIO]:
    """Open a temporary UTF-8 file that replaces `path` at the end of the block.

    If the block raises, the old file stays. Line ends are not translated. A credential is redacted
    if it is within a single call of `write`.

    Args:
        path: The file.
        synced: Whether to fsync. Without it, the write is still atomic if the process is killed,
            but a loss of power may leave neither the old file nor the new one.

    Raises:
        StorageError: The disk is full, or read-only.
    """
    learn_from_environment()
    with (
        _replacing(Path(path)) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        yield cast(TextIO, _RedactingFile(file))
        file.flush()
        if synced:
            os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_binary_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary binary file that replaces `path` at the end of the block.

    As `atomic_file`, but nothing is redacted: inside the block, `redact` knows the credentials of
    the environment, and the caller redacts the texts that it writes.

    Raises:
        StorageError: The disk is full, or read-only.
    """
    learn_from_environment()
    with _replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file that replaces `path` unless the block raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # a read-only disk has raised above
                temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote this file."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition(".")[2]
        if number.isdecimal() and not _is_running(int(number)):
            left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class _RedactingFile(io.TextIOBase):
    """File that redacts credentials in all that is written; `writelines` calls `write`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str, /) -> int:
        return self._file.write(redact(text))

    def flush(self) -> None:
        if not self._file.closed:  # Python closes this object, too, when it is collected
            self._file.flush()


def write_json(data: Any, path: str | Path) -> None:
    """Write `data` as indented UTF-8 JSON, atomically."""
    write_atomic(path, indented(data))


def write_json_with_rows(data: Mapping[str, Any], rows: Iterable[Any], path: str | Path) -> int:
    """Write `data` like `write_json`, with a long list that is written row by row.

    Args:
        data: The value that `ROWS` replaces, at any depth and exactly once, is the list.
        rows: Its items.
        path: The file.

    Returns:
        The number of items.
    """
    before, after = indented(data).split(json.dumps(ROWS))
    line = before.rpartition("\n")[2]
    pad = "\n" + " " * (len(line) - len(line.lstrip()))
    count = 0
    with atomic_file(path) as file:
        file.write(before + "[")
        for count, row in enumerate(rows, 1):
            # Only the newlines of the layout: those of texts are escaped.
            text = indented(row).rstrip("\n").replace("\n", f"{pad}  ")
            file.write(f"{',' if count > 1 else ''}{pad}  {text}")
        file.write((pad if count else "") + "]" + after)
    return count


ROWS = "(rows of write_json_with_rows)"
"""Placeholder of a list in `write_json_with_rows`."""


def indented(data: Any) -> str:
    """Return `data` as indented JSON with a final newline; credentials are not redacted."""
    return json.dumps(jsonable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(data: Any, *, is_plain: bool = False) -> str:
    """Return `data` as one line of JSON, without the newline.

    U+0085, U+2028 and U+2029 are escaped, because some readers treat them as line ends. Credentials
    of the environment are redacted, also if nothing else has registered them.

    Args:
        data: See `jsonable`.
        is_plain: See `unredacted_line`.
    """
    learn_from_environment()
    return redact(unredacted_line(data, is_plain=is_plain))


def unredacted_line(data: Any, *, is_plain: bool = False) -> str:
    """Return the same without redaction, for hashing; never write it to a file.

    Args:
        data: See `json_line`.
        is_plain: All values are JSON types already, numbers are finite, and texts have no lone
            surrogates, so `jsonable` is left out.
    """
    line = json.dumps(data if is_plain else jsonable(data), ensure_ascii=False, allow_nan=False)
    return line.translate(_LINE_ENDS)
