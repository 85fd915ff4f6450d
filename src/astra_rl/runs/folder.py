"""A run as a folder: where everything one training or evaluation produced is kept."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from astra_rl.errors import ConfigurationError
from astra_rl.infra.jsonio import json_line, parse_json, parse_own_json, write_atomic, write_json
from astra_rl.infra.storage import reason_of_failure

JsonT = TypeVar("JsonT", dict[str, Any], list[Any])

MANIFEST_VERSION = 1
"""Goes up when an older reader would misread the manifest of a run."""


class RunFolder:
    """Names of the files of a run, and how they are written.

    Args:
        path: The folder; made if it is missing.

    Raises:
        ConfigurationError: It cannot be made, or something in it leads out of it.
    """

    CONFIG = "config.yaml"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot make the run folder {str(self.path)!r}: "
                f"{reason_of_failure(error)}. Choose another with --output."
            ) from error
        _check_stays_inside(self.path)

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / self.CONFIG

    @property
    def metrics(self) -> Path:
        """Numbers of every training step, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def attempts(self) -> Path:
        """Every conversation that was played, see `astra_rl.runs.attempt_log`."""
        return self.path / "attempts.jsonl"

    def attempts_of(self, name: str) -> Path:
        """Conversations that were played or judged later, by the name of the occasion."""
        return self.path / f"attempts_{file_stem(name)}.jsonl"

    @property
    def planned(self) -> Path:
        """How many attempts each part was to make, so that those never made are counted too."""
        return self.path / "planned.json"

    @property
    def failures(self) -> Path:
        """Conversations in which the target failed, one JSON object per line."""
        return self.path / "failures.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Attackers, each in Hugging Face format."""
        return self.path / "checkpoints"

    @property
    def states(self) -> Path:
        """States of the training, to go on from; see `astra_rl.training.states`."""
        return self.path / "states"

    @property
    def reward_watch(self) -> Path:
        """Training moderator against held-out judge, one JSON object per training step."""
        return self.path / "reward_watch.jsonl"

    @property
    def learning_curve(self) -> Path:
        """Picture of the training."""
        return self.path / "learning_curve.svg"

    @property
    def report(self) -> Path:
        """The page that shows it all."""
        return self.path / "report.html"

    @property
    def transfer(self) -> Path:
        """Rates of attackers at targets, see `TransferMatrix.as_dict`."""
        return self.path / "transfer.json"

    @property
    def manifest(self) -> Path:
        """Versions, seed, times, and checksums of the prompts."""
        return self.path / "manifest.json"

    def evaluation(self, name: str) -> Path:
        """Result of an evaluation, for instance ``"before"``."""
        return self.path / f"evaluation_{file_stem(name)}.json"

    def read_manifest(self) -> dict[str, Any]:
        """Return what the manifest says.

        Raises:
            ConfigurationError: There is none, it is damaged, or of a newer version.
        """
        try:
            record: Any = parse_json(self.manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot read {self.manifest}: {type(error).__name__}. Without it nobody knows "
                "what this run is; restore it, or remove the folder."
            ) from error
        version = record.get("schema_version") if isinstance(record, dict) else None
        if not isinstance(version, int):
            raise ConfigurationError(f"{self.manifest} is not the manifest of a run.")
        if version > MANIFEST_VERSION:
            raise ConfigurationError(
                f"{self.manifest} was written by a newer version of astra-rl (schema {version}, "
                f"this one reads up to {MANIFEST_VERSION}); update it to read this run."
            )
        return dict(record)

    def write_text(self, path: Path, text: str) -> None:
        """Write a file of the run atomically."""
        write_atomic(path, text)

    def write_json(self, path: Path, data: Any) -> None:
        """Write a JSON file of the run atomically."""
        write_json(data, path)

    def write_lines(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON object per line, atomically."""
        write_atomic(path, "".join(json_line(row) + "\n" for row in rows))


_RESERVED = re.compile("(con|prn|aux|nul|com[0-9]|lpt[0-9])", re.IGNORECASE)
"""Names of devices on Windows, with any ending."""


def file_stem(name: str) -> str:
    """Return a name as part of a file's: letters, digits and hyphens, nothing that leaves a folder.

    A name that had to be changed ends in a checksum, so that no two become one.
    """
    stem = _slug(name)
    if stem == name and len(stem) <= 60 and stem and not _RESERVED.fullmatch(stem):
        return stem
    return f"{stem[:50] or 'name'}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")


def _check_stays_inside(folder: Path) -> None:
    """Refuse a folder in which a name stands for something elsewhere, or for no file at all.

    Somebody else may have made it, and a run writes to names that it expects there.
    """
    home = folder.resolve()
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            try:
                kind = path.lstat().st_mode
                if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
                    continue
                if stat.S_ISLNK(kind) and path.resolve().is_relative_to(home):
                    continue
            except FileNotFoundError:  # gone since: a run is writing
                continue
            except (OSError, RuntimeError):  # a link to itself
                pass
            raise ConfigurationError(
                f"{path} leads out of the run folder, or is no file. A run neither reads nor "
                "writes elsewhere: put what belongs there in its place, or remove it."
            )


def read_own(path: Path, kind: type[JsonT]) -> JsonT:
    """Return what a JSON file of a run holds.

    Args:
        path: The file.
        kind: What it must hold: an object (``dict``) or a list.

    Raises:
        ConfigurationError: It cannot be read, or holds something else.
    """
    try:
        found = parse_own_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"cannot read {path}: {error}. It is damaged; restore it, or remove it."
        ) from error
    if not isinstance(found, kind):
        raise ConfigurationError(f"{path} holds {type(found).__name__}, not {kind.__name__}.")
    return found


def new_run_folder(parent: str | Path, name: str) -> RunFolder:
    """Make a folder for a new run, named after `name` and the time; never one that exists."""
    stem = _slug(name).lower()[:40].strip("-") or "run"
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        path = Path(parent) / (f"{stem}-{stamp}" + (f"-{attempt}" if attempt else ""))
        if not path.exists():
            return RunFolder(path)
    raise ConfigurationError(f"{parent} is full of runs of this second; choose --output.")


def open_run_folder(path: str | Path) -> RunFolder:
    """Open the folder of a run.

    Raises:
        ConfigurationError: It is none, or of a newer version.
    """
    folder = Path(path)
    if not (folder / RunFolder.CONFIG).is_file():
        raise ConfigurationError(
            f"{folder} is not the folder of a run: it has no config.yaml. Give what "
            "'astra-rl train' or 'astra-rl demo' printed as its run folder."
        )
    run = RunFolder(folder)
    if run.manifest.is_file():  # a run that only begins has none yet
        run.read_manifest()
    return run
