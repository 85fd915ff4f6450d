"""Export the recorded attempts of a run to another format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.evaluation.show.exports import EXPORTS, export_format
from astra_rl.evaluation.show.exports.preferences import SafeReplies
from astra_rl.infra.importing import is_path
from astra_rl.runs.folder import open_run_folder
from astra_rl.runs.recorded import Recorded


@dataclass(frozen=True)
class Exported:
    """A written export.

    Attributes:
        path: The file.
        written: Number and kind of entries, for people.
    """

    path: Path
    written: Any

    def __str__(self) -> str:
        """Return what was written, in words."""
        if isinstance(self.written, int):
            return f"{self.written} entries" + (
                "" if self.written else ": the phase has nothing of this kind"
            )
        return str(self.written)


def export_run(
    run: str | Path,
    kind: str,
    *,
    output: Path | None = None,
    phase: str = "after",
    safe_replies: Path | None = None,
) -> Exported:
    """Write the attempts of one phase of a run to a file.

    Args:
        run: Run folder.
        kind: One of `EXPORTS`, or a writer of your own as ``"package.module:name"``.
        output: The file; None is the format's usual name in the run folder.
        phase: Phase of the run.
        safe_replies: JSONL file of ``attack`` and ``reply``, for the formats of TRL.

    Raises:
        ConfigurationError: An unknown format, or `safe_replies` with a format that has none.
        AstraError: The folder is no run, has no such attempts, or none that makes a training row.
    """
    if kind not in EXPORTS and not is_path(kind):
        raise ConfigurationError(
            f"--format {kind}: unknown.{did_you_mean(kind, EXPORTS)} Known: {', '.join(EXPORTS)}; "
            "your own is given as package.module:name."
        )
    chosen = export_format(kind)
    if safe_replies is not None and kind not in ("preferences", "unpaired"):
        raise ConfigurationError("--safe-replies requires --format preferences or unpaired.")
    options: dict[str, Any] = {}
    if safe_replies is not None:
        options["safe"] = SafeReplies.load(safe_replies)
    folder = open_run_folder(run)
    path = output or folder.path / chosen.filename
    with Recorded(folder, phase) as recorded:
        if chosen.counts_planned:
            options["planned"] = recorded.planned
        if chosen.has_intervals:
            options["sequential"] = recorded.sequential
        written = chosen.write(recorded, path, **options)
    return Exported(path, written)
