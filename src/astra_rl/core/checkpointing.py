"""Folders that are replaced whole: a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from astra_rl.core.storing import storing


@contextlib.contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a fresh folder beside `folder`; when the block ends well it takes its place.

    If the block raises, `folder` stays as it was.

    Raises:
        StorageError: The disk is full, or read-only.
    """
    folder = Path(folder)
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        # mkdtemp makes a private folder; a checkpoint is as readable as any other file of the run.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        old = temporary.with_name(temporary.name + ".old")
        try:
            yield temporary
            sync(temporary)
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


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open one
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(parent: str | Path) -> None:
    """Tidy up after a process that was killed inside of `replace_folder`.

    A folder that was moved aside and whose place is empty goes back; what else is left is removed.
    Only for folders that nobody else is writing to.
    """
    for path in Path(parent).glob(".*-*"):
        if not path.is_dir():
            continue
        place = path.with_name(path.name[1:].rpartition("-")[0])
        if path.suffix == ".old" and not place.exists():
            path.rename(place)
        else:
            shutil.rmtree(path, ignore_errors=True)
