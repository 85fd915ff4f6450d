"""``astra-rl calibrate``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.costs import print_spent
from astra_rl.cli.options import BudgetOptions
from astra_rl.cli.output import Printer, as_text

if TYPE_CHECKING:
    from astra_rl.actions.calibrate import Calibrated
    from astra_rl.evaluation.stats.resampling import Estimate

NAMES = {
    "auroc": "AUROC",
    "f1": "F1",
    "f1_at_best": "F1 at the best threshold, on held-out rows",
    "brier": "Brier score",
    "alpha_raters": "Krippendorff's alpha of the raters",
    "alpha_decisions": "Krippendorff's alpha, decisions",
    "alpha_scores": "Krippendorff's alpha, scores",
}
"""Names of estimates in the table, where they are not the key with spaces."""


def calibrate(
    moderators: Annotated[
        list[str],
        typer.Argument(
            metavar="MODERATOR...", help="Names, or YAML files with 'type' and 'options'."
        ),
    ],
    labels: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help="CSV or JSONL of labelled texts.")
    ],
    budget: BudgetOptions,
    text: Annotated[str | None, typer.Option(help="Column of the text to judge.")] = None,
    attack: Annotated[
        str | None, typer.Option(help="Column of the attack that the text answers.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Column of one rater's labels. Repeatable.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Minimum score of a positive text.")] = 0.5,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "calibrations"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the bootstrap.")] = 0,
) -> None:
    """Measure moderators against human labels.

    Prints accuracy, F1, AUROC, calibration and more, each with a 95% interval. Writes them, with
    the identity of the moderator, as JSON and as a chart.
    """
    from astra_rl.actions.calibrate import calibrate_moderators
    from astra_rl.evaluation.judges.labels import read_labels

    quiet_libraries()
    out = Printer()
    results = calibrate_moderators(
        moderators,
        read_labels(labels, text=text, attack=attack, labels=label or ()),
        threshold=threshold,
        folder=output,
        seed=seed,
        budget=budget.budget(),
        on_result=lambda result: _print(result, out),
    )
    print_spent(results.spent, out.console)
    if results.agreement is not None:
        out.table(_table("agreement between the moderators", results.agreement))


def _print(result: Calibrated, out: Printer) -> None:
    from astra_rl.core.moderator import describe_missing

    calibration = result.calibration
    identity, labels = calibration.identity, calibration.labels
    title = f"{identity.name} at threshold {calibration.threshold:g}"
    out.table(_table(as_text(title), calibration.estimates))
    weights = f"weights {identity.weights}, " if identity.weights else ""
    out.line(f"{weights}settings {identity.settings}")
    out.line(
        f"{labels['file']}: {labels['rows']} rows, {labels['ties']} with tied labels, "
        f"{describe_missing(calibration.unscored)}"
    )
    if calibration.scored:
        out.line(f"{calibration.groups} groups (one prompt, conversation or text each)")
    else:
        out.line(
            "rows count as independent; if several are of one prompt or conversation, name it in a "
            "column 'group'"
        )
    for path in result.paths:
        out.line(str(path))


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
