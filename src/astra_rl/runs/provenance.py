"""Provenance of a result: names of run and models, versions, commit, manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from astra_rl import distribution
from astra_rl.config.record import ConfigRecord
from astra_rl.evaluation.records.from_graphs import Labels
from astra_rl.runs.folder import MANIFEST_VERSION, TIME_FORMAT, RunFolder

_DEPENDENCIES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")
PACKAGES = {"astra-rl": distribution.NAME} | {name: name for name in _DEPENDENCIES}
"""The distributions that a result depends on, by the name that a manifest gives them."""


PROMPTS = "the prompts"
"""Name of the attacker where there is none: the prompts are sent as they are."""
PROMPTED = " (prompted)"
"""End of the name of an attacker that is not trained."""


def name_of(folder: RunFolder) -> str | None:
    """Return the name of a run in its attempts, as the manifest has it; None without one.

    It does not change when a run is resumed with ``--force``, so that attempts made again replace
    the earlier ones.
    """
    known = folder.read_manifest().get("run") if folder.manifest.is_file() else None
    return known if isinstance(known, str) else None


def labels_of(
    record: ConfigRecord,
    phase: str,
    *,
    attacker: str | None = None,
    run: str | None = None,
    categories: Mapping[str, str] | None = None,
) -> Labels:
    """Return the labels of the attempts of a phase.

    Args:
        record: Configuration of the run.
        phase: Name of the phase.
        attacker: Name of the attacker; None derives it from the configuration and the phase.
        run: Name of the run; None is a checksum of the configuration.
        categories: Category of each opening, by `Opening.id`.
    """
    state = {"before": "untrained", "training": "in training"}.get(phase, "trained")
    return Labels(
        run or record.run,
        phase,
        attacker or _attacker_of(record, state),
        record.target,
        categories=categories or {},
    )


def _attacker_of(record: ConfigRecord, state: str) -> str:
    if record.attacker is None:
        return PROMPTS
    return f"{record.attacker} ({state})" if record.is_trained else f"{record.attacker}{PROMPTED}"


def manifest(record: ConfigRecord, command: str, started: datetime) -> dict[str, Any]:
    """Return the manifest of a run: its configuration, seed, versions, commit and start."""
    settings = record.settings
    return {
        "schema_version": MANIFEST_VERSION,
        "title": settings["title"],
        "command": command,
        "seed": settings["seed"],
        "trust_remote_code": settings["trust_remote_code"],
        "config_sha256": hashlib.sha256(record.yaml.encode()).hexdigest(),
        "versions": versions(),
        "git_revision": git_revision(Path.cwd()),
        "started": started.strftime(TIME_FORMAT),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision(place: Path) -> str | None:
    """Return the commit checked out at `place`; None outside of a git repository.

    This reads the files of git and does not run git: no command in its configuration is executed,
    and no remote URL, which may contain a password, is read.
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
    """Return the text if it is a commit hash, else None."""
    return text.strip() if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text.strip()) else None
