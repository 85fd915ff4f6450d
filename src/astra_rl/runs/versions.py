"""Versions of what a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path

PACKAGES = ("astra-rl", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of what the result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision(place: Path) -> str | None:
    """Return the commit that is checked out where `place` is; None outside of git.

    The files of git are read, and git is not run: nothing that a configuration of it names is
    executed, and no address of a remote, which may hold a password, is looked at.
    """
    for folder in (place, *place.parents):
        git = folder / ".git"
        try:
            if git.is_file():  # of a worktree
                git = folder / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
            if git.is_dir():
                return _commit(git)
        except (OSError, UnicodeDecodeError):
            return None
    return None


def _commit(git: Path) -> str | None:
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return _as_commit(head)
    name = head.removeprefix("ref: ")
    common = git
    if (git / "commondir").is_file():
        common = git / (git / "commondir").read_text(encoding="utf-8").strip()
    for place in (git, common):
        if (place / name).is_file():
            return _as_commit((place / name).read_text(encoding="utf-8"))
    packed = common / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
    found = (line.split(" ")[0] for line in lines if line.endswith(f" {name}"))
    return next((_as_commit(each) for each in found), None)


def _as_commit(text: str) -> str | None:
    """Return the text if it is the name of a commit, and nothing else that a file may say."""
    return text.strip() if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text.strip()) else None
