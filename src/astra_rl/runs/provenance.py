"""Provenance of a result: names of run and models, versions, commit, manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astra_rl.config.schema import RunConfig
from astra_rl.evaluation.records.from_graphs import Labels
from astra_rl.infra.redaction import redact_settings
from astra_rl.runs.folder import MANIFEST_VERSION, RunFolder

PACKAGES = ("astra-rl", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy")


def name_of(folder: RunFolder) -> str | None:
    """Return what the attempts of a run are filed under since it was begun.

    It stays when a run is gone on with by force: attempts that are made again replace the first.
    """
    known = folder.read_manifest().get("run") if folder.manifest.is_file() else None
    return known if isinstance(known, str) else None


def labels_of(
    config: RunConfig,
    phase: str,
    *,
    attacker: str | None = None,
    run: str | None = None,
    categories: Mapping[str, str] | None = None,
) -> Labels:
    """Say who plays in a part of a run, and of which kinds its openings are.

    None as `run` names it after the configuration.
    """
    state = {"before": "untrained", "training": "in training"}.get(phase, "trained")
    known = config.without_budget().to_yaml()
    digest = hashlib.blake2b(known.encode(), digest_size=6).hexdigest()
    return Labels(
        run or digest,
        phase,
        attacker or f"{config.attacker.model} ({state})",
        redact_settings(config.target.name),
        categories=categories or {},
    )


def manifest(config: RunConfig, command: str) -> dict[str, Any]:
    """Return what is needed to tell one run from another."""
    return {
        "schema_version": MANIFEST_VERSION,
        "title": config.title,
        "command": command,
        "seed": config.seed,
        "trust_remote_code": config.trust_remote_code,
        "config_sha256": hashlib.sha256(config.to_yaml().encode()).hexdigest(),
        "versions": versions(),
        "git_revision": git_revision(Path.cwd()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


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
