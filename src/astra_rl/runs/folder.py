"""Folder of a run: names of its files, and how they are read and written."""

from __future__ import annotations

import functools
import html
import os
import re
import stat
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.show.escaping import framed_page
from astra_rl.infra.jsonio import json_line, parse_json, parse_own_json, write_atomic, write_json
from astra_rl.infra.redaction import redact_settings
from astra_rl.infra.storage import reason_of_failure
from astra_rl.runs.file_types import Manifest

MANIFEST_VERSION = 1
"""Incremented when older versions would misread the manifest of a run."""
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
"""Format of the times in a manifest."""


class RunFolder:
    """Names of the files of a run, and methods that write them atomically.

    Args:
        path: The folder; created if it does not exist.
        part_of: Folder of the hardening that the run is a part of; None if it stands alone.

    Raises:
        ConfigurationError: It cannot be created, or contains a link to a place outside of it.
    """

    CONFIG = "config.yaml"

    def __init__(self, path: str | Path, *, part_of: Path | None = None) -> None:
        self.path, self.part_of = Path(path), part_of
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
        """Log of the attempts, see `astra_rl.runs.attempt_log`."""
        return self.path / "attempts.jsonl"

    def attempts_of(self, name: str) -> Path:
        """Log of a phase that a later command played or re-scored."""
        return self.path / f"attempts_{file_stem(name)}.jsonl"

    @property
    def planned(self) -> Path:
        """Number of planned attempts by phase, so that attempts never made are counted."""
        return self.path / "planned.json"

    @property
    def stopped(self) -> Path:
        """Phases of the attempts of an evaluation that stopped early, re-scored or replayed."""
        return self.path / "stopped.json"

    @property
    def failures(self) -> Path:
        """Conversations with a successful attack, one JSON object per line."""
        return self.path / "failures.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Attackers, each in Hugging Face format."""
        return self.path / "checkpoints"

    @property
    def states(self) -> Path:
        """Training states for resuming; see `astra_rl.training.states`."""
        return self.path / "states"

    @property
    def reward_watch(self) -> Path:
        """Training moderator against held-out judge, one JSON object per training step."""
        return self.path / "reward_watch.jsonl"

    @property
    def learning_curve(self) -> Path:
        """SVG chart of the training metrics."""
        return self.path / "learning_curve.svg"

    @property
    def report(self) -> Path:
        """HTML report."""
        return self.path / "report.html"

    @property
    def archive(self) -> Path:
        """Cells of the archive of a search, see `astra_rl.methods.archive.Archive.as_dict`."""
        return self.path / "archive.json"

    @property
    def archive_table(self) -> Path:
        """The same cells as a table for spreadsheets."""
        return self.path / "archive.csv"

    @property
    def transfer(self) -> Path:
        """Success rates of attackers against targets, see `TransferMatrix.as_dict`."""
        return self.path / "transfer.json"

    @property
    def manifest(self) -> Path:
        """Versions, seed, times, and checksums of the prompts."""
        return self.path / "manifest.json"

    def evaluation(self, name: str) -> Path:
        """Metrics of an evaluation, for instance ``"before"``."""
        return self.path / f"evaluation_{file_stem(name)}.json"

    def _repr_html_(self) -> str:
        """Return the report, for a notebook; the path while there is none."""
        if not self.report.is_file():
            return f"<code>{html.escape(str(self.path))}</code>"
        return framed_page(self.report.read_text(encoding="utf-8"))

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises:
            ConfigurationError: It is missing, damaged, or of a newer version.
        """
        try:
            record: Any = parse_json(self.manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot read {self.manifest}: {type(error).__name__}. It identifies the "
                "run; restore it, or remove the folder."
            ) from error
        version = record.get("schema_version") if isinstance(record, dict) else None
        if not isinstance(version, int):
            raise ConfigurationError(f"{self.manifest} is not the manifest of a run.")
        if version > MANIFEST_VERSION:
            raise ConfigurationError(
                f"{self.manifest} was written by a newer version of astra-rl (schema {version}, "
                f"this one reads up to {MANIFEST_VERSION}); update it to read this run."
            )
        return checked_manifest(record, self.manifest)

    @property
    def started(self) -> datetime:
        """Time at which the run was first started, UTC; now if it has no manifest yet."""
        given = self.read_manifest().get("started") if self.manifest.is_file() else None
        try:
            return datetime.strptime(str(given), TIME_FORMAT).replace(tzinfo=UTC)
        except ValueError:
            return datetime.now(UTC)

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
"""Reserved device names on Windows."""


def file_stem(name: str) -> str:
    """Return a file-name-safe form of a name: letters, digits, underscores and hyphens.

    A name that had to be changed gets a checksum appended, so that different names stay different.
    Credentials are left out first, as of an address with a password.
    """
    name = str(redact_settings(name))
    stem = _slug(name)
    if stem == name and len(stem) <= 60 and stem and not _RESERVED.fullmatch(stem):
        return stem
    return f"{stem[:50] or 'name'}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")


def _check_stays_inside(folder: Path) -> None:
    """Refuse a folder with links to places outside of it, or with devices.

    The folder may come from an untrusted source, and a run writes to fixed names in it.
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
            except FileNotFoundError:  # removed meanwhile by a run that is writing
                continue
            except (OSError, RuntimeError):  # a link to itself
                pass
            raise ConfigurationError(
                f"{path} is a link out of the run folder, or a special file. A run only reads and "
                "writes inside its folder: replace it with a regular file, or remove it."
            )


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a regular file",
}


def kind_of_file(path: Path) -> str | None:
    """Return what a path is, in words, without opening it; None if there is nothing."""
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "a special file")
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "a link to nothing" if path.is_symlink() else None
    except OSError as error:  # for instance a link to itself, or a folder that cannot be searched
        return f"not readable ({reason_of_failure(error)})"


def checked_manifest(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a manifest whose fields have their types; those that are null are left out.

    Raises:
        ConfigurationError: One has another; the file may come from another person.
    """
    known = Manifest.model_fields
    record = {name: each for name, each in record.items() if each is not None or name not in known}
    _check(record, Manifest, path)
    return record


def read_own(path: Path, kind: Any) -> Any:
    """Read a JSON file of a run, which may come from another person.

    Args:
        path: The file.
        kind: A type of `astra_rl.runs.file_types`, or a list or mapping of one.

    Returns:
        The values as they are in the file, also those of fields that the type does not have.

    Raises:
        ConfigurationError: It cannot be read, or a value has another type or is out of range.
    """
    try:
        found = parse_own_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"cannot read {path}: {error}. It is damaged; restore it, or remove it."
        ) from error
    _check(found, kind, path)
    return found


def _check(found: Any, kind: Any, path: Path) -> None:
    try:
        _reader(kind).validate_python(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{path} is not a valid file of a run: {f'{where}: ' if where else ''}{first['msg']}. "
            "Restore it, or remove it."
        ) from None


def is_of_type(found: Any, kind: Any) -> bool:
    """Whether a JSON value, as of a line of a log, has a type; see `read_own`."""
    try:
        _reader(kind).validate_python(found)
    except ValidationError:
        return False
    return True


@functools.cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def new_run_folder(parent: str | Path, name: str) -> RunFolder:
    """Create a folder for a new run, named after `name` and the time."""
    stem = _slug(name).lower()[:40].strip("-") or "run"
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        path = Path(parent) / (f"{stem}-{stamp}" + (f"-{attempt}" if attempt else ""))
        if not path.exists():
            return RunFolder(path)
    raise ConfigurationError(
        f"{parent} has 1000 runs named after this second; choose another folder with --output."
    )


def open_run_folder(path: str | Path) -> RunFolder:
    """Open the folder of an existing run.

    Raises:
        ConfigurationError: The folder is no run, or of a newer version.
    """
    folder = Path(path)
    config = folder / RunFolder.CONFIG
    if not config.is_file():
        found = kind_of_file(config)
        reason = "it has no config.yaml" if found is None else f"its config.yaml is {found}"
        raise ConfigurationError(
            f"{folder} is not the folder of a run: {reason}. Give the "
            "run folder that 'astra-rl train' or 'astra-rl demo' printed."
        )
    run = RunFolder(folder)
    if run.manifest.is_file():  # a run that has just started has none yet
        run.read_manifest()
    return run
