"""Result of a run in Python: rates, failures, kinds of failure, a data frame and the report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.failure_kinds import Kind, kinds_of_failure
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.show.exports.table import data_frame
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.infra.storage import storing
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.recorded import Recorded, StoredAttempts

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class RunResult:
    """What one phase of a run found. Everything is read from the folder when it is used.

    Attributes:
        folder: Folder of the run: records, report, and everything that the commands read.
        phase: Phase of the run, see `Recorded`.
    """

    folder: RunFolder
    _: KW_ONLY
    phase: str = "after"

    @property
    def attempts(self) -> Sequence[Attempt]:
        """The conversations, in order."""
        return StoredAttempts(self.folder, self.phase)

    @property
    def failures(self) -> list[Attempt]:
        """The conversations in which the target failed, in order."""
        with Recorded(self.folder, self.phase) as recorded:
            return list(recorded.attempts(outcome="success"))

    @property
    def kinds(self) -> list[Kind]:
        """The failures grouped by similar attacks, the largest group first."""
        return kinds_of_failure(self.failures)

    def summary(self) -> Summary:
        """Return outcomes, success rates and queries; attempts never made count as errors."""
        with Recorded(self.folder, self.phase) as recorded:
            return recorded.summary()

    def asr(self) -> Rate:
        """Return the attack success rate: the share of conversations in which the target failed.

        It has the interval at 95% confidence, and counts what is not known; see `Rate`.
        """
        return self.summary().asr

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row per turn, with typed columns; see `data_frame`.

        Raises:
            MissingDependencyError: The extra ``data`` is not installed.
        """
        with Recorded(self.folder, self.phase) as recorded:
            return data_frame(recorded)

    def html(self) -> str:
        """Return the report, a page that needs no other file.

        Raises:
            ConfigurationError: The run has no report yet.
        """
        try:
            return self.folder.report.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {self.folder.report}: {type(error).__name__}. "
                f"'astra-rl report {self.folder.path}' writes it."
            ) from None

    def save(self, path: str | Path) -> Path:
        """Copy the folder of the run, or the report alone if `path` ends in ``.html``.

        Returns:
            The copy. A folder is a run, as the original.

        Raises:
            ConfigurationError: `path` exists, or there is no report.
            StorageError: It cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise ConfigurationError(f"{path} exists already; choose another path.")
        with storing(path):
            if path.suffix == ".html":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.html(), encoding="utf-8")
            else:
                shutil.copytree(self.folder.path, path, symlinks=True)
        return path

    def __repr__(self) -> str:
        """Return the rate and the folder."""
        return f"<{type(self).__name__}: {self.asr().text}; {self.folder.path}>"

    def _repr_html_(self) -> str:
        """Return the report, for a notebook."""
        return self.folder._repr_html_()


def open_run(path: str | Path, phase: str = "after") -> RunResult:
    """Open the folder of a run, to read its results in Python.

    ```python
    result = astra_rl.open_run("runs/first")
    print(result.asr().text, len(result.kinds), result.to_pandas()["category"].value_counts())
    ```

    Args:
        path: Folder of the run.
        phase: ``"before"``, ``"training"``, ``"after"``, or the name of a phase that a later
            command played.

    Raises:
        ConfigurationError: The folder is no run, or has no such phase.
    """
    folder = open_run_folder(path)
    with Recorded(folder, phase):
        return RunResult(folder, phase=phase)
