"""Atomic replacement of folders, and checksums of their files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from astra_rl.infra.storage import storing


@contextlib.contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` when the block ends without an exception.

    If the block raises, `folder` is unchanged. Readers see the old or the new folder.

    Raises:
        StorageError: The disk is full, or read-only.
    """
    folder = Path(folder)
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        old = temporary.with_name(temporary.name + ".old")
        try:
            yield temporary
            for written in [*temporary.rglob("*"), temporary]:
                _make_as_readable_as_others(written)
                sync(written)
            if folder.exists():
                folder.rename(old)
            try:
                temporary.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
            sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _make_as_readable_as_others(path: Path) -> None:
    """Set the permissions that the umask gives; mkdtemp and safetensors make private files."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(parent: str | Path) -> None:
    """Clean up after a process that was killed inside `replace_folder`.

    An old folder is restored if its replacement is missing; other temporary folders are removed. No
    other process may write to `parent` at the same time.
    """
    for path in Path(parent).glob(".*-*"):
        if not path.is_dir():
            continue
        place = path.with_name(path.name[1:].rpartition("-")[0])
        if path.suffix == ".old" and not place.exists():
            path.rename(place)
        else:
            shutil.rmtree(path, ignore_errors=True)


CHECKSUMS = "SHA256SUMS"
"""Name of the file with the checksums of a folder, in the format of `sha256sum -c`."""


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files of a folder to `CHECKSUMS`."""
    text = "".join(f"{sha256(path)}  {name}\n" for name, path in _files_of(folder))
    (folder / CHECKSUMS).write_text(text, encoding="utf-8")


def damage_of(folder: Path) -> str | None:
    """Return how a folder differs from its checksums; None if it does not, or has none."""
    if not (folder / CHECKSUMS).is_file():
        return None
    text = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace")
    recorded = {line[66:]: line[:64] for line in text.splitlines()}
    there = dict(_files_of(folder))
    if missing := recorded.keys() - there.keys():
        return f"{min(missing)!r} is missing"
    if unknown := there.keys() - recorded.keys():
        return f"{min(unknown)!r} is not in its {CHECKSUMS}"
    changed = (name for name, path in there.items() if sha256(path) != recorded[name])
    return next((f"{name!r} differs from its checksum" for name in changed), None)


def sha256(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            yield path.relative_to(folder).as_posix(), path
