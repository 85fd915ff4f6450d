"""Trackers: destinations of the metrics of a training."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from astra_rl.errors import require
from astra_rl.evaluation.show.escaping import markdown_text
from astra_rl.infra.jsonio import json_line
from astra_rl.infra.storage import storing
from astra_rl.logging import logger

ReportTo = Literal["none", "mlflow", "tensorboard", "trackio", "wandb"]
"""Trackers by the names that TRL and transformers give them in `report_to`."""
PROJECT = "astra-rl"
"""Project or experiment of a tracker, where the user's environment names none."""
CONVERSATIONS = "conversations"
"""Name of the table of conversations in a tracker."""
COLUMNS = ("step", "prompt", "attack", "response", "reward")
"""Columns of that table: the training step, three texts, and the reward of the turn or NaN."""
LOGGED = 8
"""Conversations of each step in it."""
Row = tuple[int, str, str, str, float]
"""A row of that table."""


class Tracker(ABC):
    """Receives the metrics of each training step."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of a training step, counted from 1."""

    def log_conversations(self, rows: Sequence[Row], step: int) -> None:  # noqa: B027, most cannot
        """Record sampled conversations of a training step as a table; texts are shown as text.

        Args:
            rows: Values of `COLUMNS`. Control characters in texts are visible symbols already.
            step: The training step.
        """

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
    """Appends one JSON object per step to a file; a value that is not finite becomes null.

    The file is open only while a line is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line."""
        with storing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json_line({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        """Write to disk."""
        with storing(self.path), open(self.path, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())


class HistoryTracker(Tracker):
    """Keeps all metrics in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row."""
        self.rows.append({"step": float(step), **metrics})


class AccelerateTracker(Tracker):
    """A tracker of the library accelerate.

    Args:
        kind: Its name there and of its package; also the extra that installs it.
        arguments: Arguments of its class in ``accelerate.tracking``.

    Raises:
        MissingDependencyError: The package is not installed.
    """

    def __init__(self, kind: str, **arguments: Any) -> None:
        require(kind, extra=kind)
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # its trackers log through it
        self._tracker: Any = LOGGER_TYPE_TO_CLASS[kind](**arguments)
        self._tracker.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one step."""
        self._tracker.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._tracker.finish()


class TensorBoardTracker(AccelerateTracker):
    """Writes TensorBoard event files; needs the extra ``tensorboard``."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        super().__init__("tensorboard", run_name=folder.name, logging_dir=str(folder.parent))

    def log_conversations(self, rows: Sequence[Row], step: int) -> None:
        """Write a table in Markdown, whose cells are escaped."""
        cells = [[markdown_text(str(cell)) for cell in row] for row in rows]
        text = "".join(
            f"| {' | '.join(row)} |\n" for row in [COLUMNS, ["---"] * len(COLUMNS), *cells]
        )
        self._tracker.tracker.add_text(CONVERSATIONS, text, global_step=step)


class WandbTracker(AccelerateTracker):
    """Logs to Weights & Biases; needs the extra ``wandb``. Sends data over the network.

    Args:
        project: Name of the project.
        init_arguments: Further arguments of ``wandb.init``.
    """

    def __init__(self, project: str = PROJECT, **init_arguments: Any) -> None:
        super().__init__("wandb", run_name=project, **init_arguments)

    def log_conversations(self, rows: Sequence[Row], step: int) -> None:
        """Log a table."""
        data = [list(row) for row in rows]
        self._tracker.log_table(CONVERSATIONS, columns=list(COLUMNS), data=data, step=step)


class TrackioTracker(AccelerateTracker):
    """Logs to Trackio; needs the extra ``trackio``. Local, unless a Space is named.

    Args:
        project: Name of the project.
        init_arguments: Further arguments of ``trackio.init``.
    """

    def __init__(self, project: str = PROJECT, **init_arguments: Any) -> None:
        super().__init__("trackio", run_name=project, **init_arguments)

    def log_conversations(self, rows: Sequence[Row], step: int) -> None:
        """Log a table."""
        trackio = require("trackio", extra="trackio")
        pandas = require("pandas", extra="trackio")
        table = trackio.Table(dataframe=pandas.DataFrame(list(rows), columns=list(COLUMNS)))
        self._tracker.log({CONVERSATIONS: table}, step=step)


class MLflowTracker(AccelerateTracker):
    """Logs to MLflow, where MLFLOW_TRACKING_URI says; needs the extra ``mlflow``.

    Args:
        run_name: Name of the run.
        run: Identity of the run, kept as a tag. If MLflow has a run with it, that one continues.
        settings: Parameters of the run.
    """

    TAG = "astra_rl_run"

    def __init__(self, run_name: str, run: str, settings: Mapping[str, Any]) -> None:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = require("mlflow", extra="mlflow").search_runs(
            experiment_names=[experiment],
            filter_string=f"tags.{self.TAG} = '{run}'",
            output_format="list",
        )
        super().__init__(
            "mlflow",
            experiment_name=experiment,
            run_name=run_name,
            run_id=known[0].info.run_id if known else None,
            tags={self.TAG: run},
        )
        if not known:  # parameters of a run cannot be changed
            self._tracker.store_init_configuration(dict(_flat(settings)))

    def log_conversations(self, rows: Sequence[Row], step: int) -> None:
        """Log a table as an artifact of the step."""
        columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
        mlflow = require("mlflow", extra="mlflow")
        mlflow.log_table(columns, artifact_file=f"{CONVERSATIONS}/step-{step:08d}.json")


def _flat(settings: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by their places, for instance ``training.lr``."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


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

    The variables of each package apply, for instance WANDB_PROJECT, WANDB_MODE, TRACKIO_PROJECT,
    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.

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
    if name == "mlflow":
        return MLflowTracker(folder.name, run, settings)
    if name == "trackio":
        return TrackioTracker(
            os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{folder.name}-{run}",
            resume="allow",
            config=dict(settings),
        )
    return WandbTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
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

    def log_conversations(self, rows: Sequence[Row], step: int) -> None:
        """Log to each."""
        for tracker in self.trackers:
            tracker.log_conversations(rows, step)

    def close(self) -> None:
        """Close each, also if one of them cannot be closed."""
        with ExitStack() as closed:
            for tracker in reversed(self.trackers):
                closed.callback(tracker.close)


@contextmanager
def closed_on_error(trackers: Iterable[Tracker]) -> Iterator[MultiTracker]:
    """Yield trackers as one, which is closed if the block raises an exception.

    Args:
        trackers: Those that are made already are also closed if making the next one fails.
    """
    with ExitStack() as closed:
        yield MultiTracker([closed.enter_context(closing(each)) for each in trackers])
        closed.pop_all()
