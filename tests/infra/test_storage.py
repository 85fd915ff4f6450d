"""A disk that is full or read-only is one error that names the file, whoever noticed it."""

import errno
import sqlite3

import pytest

from astra_rl.errors import ConfigurationError, StorageError
from astra_rl.infra.storage import storing


class SafetensorError(Exception):
    """What a library that is written in Rust raises."""


def full_database():
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError) as caught:
        database.execute("CREATE TABLE a (b)")
    return caught.value


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "no room"), "No space left on device"),
        (OSError(errno.EROFS, "no"), "Read-only file system"),
        (PermissionError(errno.EACCES, "no"), "Permission denied"),
        (SafetensorError("I/O error: (os error 28)"), "No space left on device"),
        (full_database(), "No space left on device"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_file_the_reason_and_what_to_do_are_said(tmp_path, error, reason):
    path = tmp_path / "weights"
    expected = f"cannot write {path}: {reason}.*intact. Free disk space, or make the path writable"
    with pytest.raises(StorageError, match=expected) as caught, storing(path):
        raise error
    assert caught.value.__cause__ is error


def test_the_innermost_file_is_the_one_that_is_named(tmp_path):
    outer, inner = storing(tmp_path / "outer"), storing(tmp_path / "inner")
    with pytest.raises(StorageError, match="inner") as caught, outer, inner:
        raise OSError(errno.ENOSPC, "no room")
    assert "outer" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "not there"),
        sqlite3.OperationalError("near SELCT: syntax error"),
        ConfigurationError("wrong"),
        ValueError("(os error none)"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_any_other_error_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, storing(tmp_path):
        raise error
    assert caught.value is error
