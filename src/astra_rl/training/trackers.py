"""Trackers: destinations of the metrics of a training."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from astra_rl.errors import require
from astra_rl.infra.jsonio import json_line
from astra_rl.infra.storage import storing
from astra_rl.logging import logger

ReportTo = Literal["none", "tensorboard", "wandb"]
"""Trackers by the names that TRL and transformers give them in `report_to`."""


class Tracker(ABC):
    """Receives the metrics of each training step."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of a training step, counted from 1."""

    def close(self) -> None:  # noqa: B027, most have no resources
        """Flush and release resources; called once at the end."""


class NullTracker(Tracker):
    """Discards all metrics."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""


class LogTracker(Tracker):
    """Writes to the library's logger, at level INFO."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one line."""
        text = "  ".join(f"{name}={value:.4g}" for name, value in metrics.items())
        logger.info("step %d  %s", step, text)


class JSONLTracker(Tracker):
    """Appends one JSON object per step to a file; a value that is not finite becomes null."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115, for a whole run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line and flush it."""
        with storing(self.path):
            self._file.write(json_line({"step": step, **metrics}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Write to disk and close."""
        if not self._file.closed:
            with storing(self.path), self._file:
                self._file.flush()
                os.fsync(self._file.fileno())


class HistoryTracker(Tracker):
    """Keeps all metrics in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row."""
        self.rows.append({"step": float(step), **metrics})


class TensorBoardTracker(Tracker):
    """Writes TensorBoard event files; needs the extra ``tensorboard``."""

    def __init__(self, folder: str | Path) -> None:
        require("tensorboard", extra="tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbTracker(Tracker):
    """Logs to Weights & Biases; needs the extra ``wandb``. Sends data over the network."""

    def __init__(self, **init_arguments: Any) -> None:
        self._run: Any = require("wandb", extra="wandb").init(**init_arguments)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def check_trackers(names: Sequence[ReportTo]) -> None:
    """Check that the packages of trackers are installed; nothing is sent.

    Raises:
        MissingDependencyError: One is not; the message names its extra.
    """
    for name in names:
        if name != "none":
            require(name, extra=name)


def make_tracker(
    name: ReportTo, *, folder: Path, run: str, settings: Mapping[str, Any], resumes: bool
) -> Tracker:
    """Construct a tracker by its name.

    The variables WANDB_PROJECT, WANDB_MODE and others of Weights & Biases apply.

    Args:
        name: Its name.
        folder: Folder of the run; TensorBoard's event files go to a subfolder.
        run: Name of the run, the same when it is resumed.
        settings: Configuration of the run, without credentials.
        resumes: Whether the run is resumed.

    Raises:
        MissingDependencyError: Its package is not installed.
    """
    if name == "none":
        return NullTracker()
    if name == "tensorboard":
        return TensorBoardTracker(folder / "tensorboard")
    return WandbTracker(
        name=folder.name,
        id=run,
        resume="allow" if resumes else None,
        config=dict(settings),
        dir=str(folder),
    )


class MultiTracker(Tracker):
    """Forwards metrics to several trackers."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log to each."""
        for tracker in self.trackers:
            tracker.log(metrics, step)

    def close(self) -> None:
        """Close each."""
        for tracker in self.trackers:
            tracker.close()
