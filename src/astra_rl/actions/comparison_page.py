"""The page of a comparison: two runs side by side, in the form of the report of a run."""

from __future__ import annotations

import shlex
from pathlib import Path

from astra_rl.actions.compare import Comparison
from astra_rl.evaluation.show.report import ReportData, Reproduction, Training, write_report
from astra_rl.runs.evaluations import Side, evaluations_side_by_side
from astra_rl.runs.folder import open_run_folder


def write_comparison_page(
    found: Comparison,
    run_a: str | Path,
    run_b: str | Path,
    path: str | Path,
    *,
    phase: str = "after",
    phase_b: str | None = None,
) -> None:
    """Write a page with the rates, the pairs and the conversations of two runs.

    Args:
        found: Result of `compare_runs` with the same runs and phases.
        run_a: Folder of the first run.
        run_b: Folder of the second run.
        path: File of the page.
        phase: Phase of both runs.
        phase_b: Phase of the second run; None uses `phase`.

    Raises:
        ConfigurationError: A folder cannot be read.
    """
    folders = open_run_folder(run_a), open_run_folder(run_b)
    phases = phase, phase if phase_b is None else phase_b
    sides = map(Side, folders, phases, found.names)
    command = shlex.join(["astra-rl", "compare", str(run_a), str(run_b), "--phase", phase])
    data = ReportData(
        title=f"{found.a.name} against {found.b.name}",
        evaluations=evaluations_side_by_side(list(sides)),
        training=Training(steps=0),
        by_category=found.by_category,
        reproduction=Reproduction(
            command=command + (f" --phase-b {shlex.quote(phase_b)}" if phase_b else "")
        ),
        notes=["Pairs have the same prompt and trial, and were judged alike."],
    )
    write_report(data, path)
