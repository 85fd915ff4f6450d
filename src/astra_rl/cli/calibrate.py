"""What ``astra-rl calibrate`` does: thin over `astra_rl.evaluation.judges.calibration`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from astra_rl.cli.budget import print_spent
from astra_rl.config.loading import load_moderator
from astra_rl.config.resolve import check_prices, resolve_moderator
from astra_rl.core.moderator import describe_missing
from astra_rl.evaluation.judges.calibration import (
    Calibration,
    agreement,
    calibrate,
    write_calibration,
)
from astra_rl.evaluation.judges.labels import read_labels
from astra_rl.evaluation.stats.classification import Estimate
from astra_rl.runs.spending import spending_on
from astra_rl.targets.budget import Budget

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
    budget: Budget,
    console: Console,
) -> None:
    """Calibrate moderators on one file, keep the results, and print them.

    If a budget ends it early, the moderators that were done are kept, and so is what was replied of
    the next: the same call again goes on.

    Raises:
        BudgetSpentError: Nothing more may be spent.
        AstraError: A moderator cannot be made or the file cannot be read; the message says why.
    """
    moderators = [resolve_moderator(load_moderator(reference)) for reference in references]
    endpoints = [each for moderator in moderators for each in moderator.endpoints()]
    check_prices(budget, endpoints)
    labelled = read_labels(labels, text=text, attack=attack, labels=label)
    found = []
    with spending_on(budget, folder, asks=bool(endpoints), occasion="calibrate") as ledger:
        for moderator in moderators:
            ledger.check()
            judge = moderator.load()
            calibration = calibrate(judge, labelled, threshold=threshold, seed=seed)
            found.append(calibration)
            _print(calibration, console)
            for path in write_calibration(calibration, folder):
                console.print(str(path), highlight=False, soft_wrap=True, markup=False)
    print_spent(ledger.as_dict(), console)
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
