"""What ``astra-rl calibrate`` does: thin over `astra_rl.evaluation.calibration`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from astra_rl.core.moderator import describe_missing
from astra_rl.evaluation.calibration import Calibration, agreement, calibrate, write_calibration
from astra_rl.evaluation.classification import Estimate
from astra_rl.evaluation.labels import read_labels
from astra_rl.runs.config_files import load_moderator
from astra_rl.runs.making import build_moderator, check_moderator_options

NAMES = {
    "auroc": "AUROC",
    "f1": "F1",
    "f1_at_best": "F1 there, on other rows",
    "brier": "Brier score",
    "alpha_raters": "Krippendorff's alpha of the raters",
    "alpha_decisions": "Krippendorff's alpha, decisions",
    "alpha_scores": "Krippendorff's alpha, scores",
}


def calibrate_moderators(
    references: Sequence[str],
    labels: Path,
    *,
    text: str | None,
    attack: str | None,
    label: Sequence[str],
    threshold: float,
    folder: Path,
    seed: int,
    console: Console,
) -> None:
    """Calibrate moderators on one file, keep the results, and print them.

    Raises:
        AstraError: A moderator cannot be made or the file cannot be read; the message says why.
    """
    configs = [load_moderator(reference) for reference in references]
    for config in configs:
        check_moderator_options(config)
    labelled = read_labels(labels, text=text, attack=attack, labels=label)
    found = []
    for config in configs:
        calibration = calibrate(build_moderator(config), labelled, threshold=threshold, seed=seed)
        found.append(calibration)
        _print(calibration, console)
        for path in write_calibration(calibration, folder):
            console.print(str(path), highlight=False, soft_wrap=True, markup=False)
    if len(found) > 1:
        console.print(_table("between the moderators", agreement(found, seed=seed)))


def _print(calibration: Calibration, console: Console) -> None:
    identity, labels = calibration.identity, calibration.labels
    title = f"{identity.name} at threshold {calibration.threshold:g}"
    console.print(_table(escape(title), calibration.estimates))
    weights = f"weights {identity.weights}, " if identity.weights else ""
    notes = [
        f"{weights}settings {identity.settings}",
        f"{labels['file']}: {labels['rows']} rows, {labels['ties']} undecided by their labels, "
        f"{describe_missing(calibration.unscored)}",
    ]
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)


def _table(title: str, estimates: Mapping[str, Estimate]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for name, estimate in estimates.items():
        interval = "-" if math.isnan(estimate.low) else f"{estimate.low:.3f} to {estimate.high:.3f}"
        value = "-" if math.isnan(estimate.value) else f"{estimate.value:.3f}"
        table.add_row(NAMES.get(name, name.replace("_", " ")), value, interval)
    return table
