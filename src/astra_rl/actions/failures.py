"""Failures of a run ranked by likelihood in ordinary use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from astra_rl.evaluation.measures.likely_failures import (
    Ranking,
    most_likely_failures,
    severity_and_likelihood,
)
from astra_rl.evaluation.show.charts import severity_likelihood
from astra_rl.runs.folder import open_run_folder
from astra_rl.runs.recorded import Recorded


@dataclass(frozen=True)
class Ranked:
    """Failures of a run, ranked by likelihood.

    Attributes:
        ranking: The ranked failures.
        path: File with the ranking.
        picture: SVG chart of severity against likelihood; None if no likelihood was measured.
    """

    ranking: Ranking
    path: Path
    picture: Path | None


def rank_failures(
    run: str | Path,
    *,
    phase: str = "after",
    under: str = "baseline",
    by: Literal["total", "per_token"] = "total",
    most: int = 50,
) -> Ranked:
    """Rank the failures of a run by the likelihood of their attacks in ordinary use.

    Writes ``most_likely.json`` and the chart ``severity_likelihood.svg`` into the run's folder.

    Args:
        run: Folder of the run.
        phase: Phase of the run.
        under: Model whose likelihood is used: ``"baseline"``, or another that was recorded.
        by: See `most_likely_failures`.
        most: Number of failures to keep.

    Raises:
        ConfigurationError: The folder is no run, or an argument is out of range.
    """
    folder = open_run_folder(run)
    with Recorded(folder, phase) as recorded:
        ranking = most_likely_failures(recorded.attempts(), under=under, by=by, most=most)
        points = severity_and_likelihood(recorded.attempts(), under=under)
        threshold = next((row.threshold for row in recorded.rows(limit=1)), None)
    path = folder.path / "most_likely.json"
    folder.write_json(
        path, {"phase": phase, **ranking.as_dict(), "points": [p._asdict() for p in points]}
    )
    picture = None
    if points:
        picture = folder.path / "severity_likelihood.svg"
        drawn = [
            (point.nll if by == "total" else point.nll_per_token, point.severity)
            for point in points
        ]
        unit = "nats" if by == "total" else "nats per token"
        folder.write_text(picture, severity_likelihood(drawn, threshold=threshold, unit=unit))
    return Ranked(ranking, path, picture)
