"""A run as a folder: where everything one training or evaluation produced is kept."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from astra_rl.core.jsonio import json_line, write_atomic, write_json
from astra_rl.errors import ConfigurationError


class RunFolder:
    """Names of the files of a run, and how they are written.

    Args:
        path: The folder; made if it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot make the run folder {self.path}: {error.strerror}. Choose another with "
                "--output."
            ) from error

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Numbers of every training step, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def attempts(self) -> Path:
        """Every conversation that was played, see `astra_rl.runs.records`."""
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
        """States of the training, to go on from; see `astra_rl.training.resuming`."""
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
        return self.path / f"evaluation_{name}.json"

    def write_text(self, path: Path, text: str) -> None:
        """Write a file of the run atomically."""
        write_atomic(path, text)

    def write_json(self, path: Path, data: Any) -> None:
        """Write a JSON file of the run atomically."""
        write_json(data, path)

    def write_lines(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON object per line, atomically."""
        write_atomic(path, "".join(json_line(row) + "\n" for row in rows))


def file_stem(name: str) -> str:
    """Return a name as part of a file's: letters, digits and hyphens, nothing that leaves a folder.

    A name that had to be shortened or changed much ends in a checksum, so that no two collide.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    if len(stem) <= 60:
        return stem
    return f"{stem[:50]}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"


def new_run_folder(parent: str | Path, name: str) -> RunFolder:
    """Make a folder for a new run, named after `name` and the time; never one that exists."""
    stem = file_stem(name).lower()[:40] or "run"
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        path = Path(parent) / (f"{stem}-{stamp}" + (f"-{attempt}" if attempt else ""))
        if not path.exists():
            return RunFolder(path)
    raise ConfigurationError(f"{parent} is full of runs of this second; choose --output.")


def open_run_folder(path: str | Path) -> RunFolder:
    """Open the folder of a finished run.

    Raises:
        ConfigurationError: It is none.
    """
    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        raise ConfigurationError(
            f"{folder} is not the folder of a run: it has no config.yaml. Give what "
            "'astra-rl train' or 'astra-rl demo' printed as its run folder."
        )
    return RunFolder(folder)
