"""``astra-rl calibrate``: moderators against human labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from astra_rl.cli.budget import print_spent
from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.options import BudgetOptions
from astra_rl.cli.output import Output

if TYPE_CHECKING:
    from astra_rl.evaluation.judges.calibration import Calibration
    from astra_rl.evaluation.stats.classification import Estimate

NAMES = {
    "auroc": "AUROC",
    "f1": "F1",
    "f1_at_best": "F1 at the best threshold, on other rows",
    "brier": "Brier score",
    "alpha_raters": "Krippendorff's alpha of the raters",
    "alpha_decisions": "Krippendorff's alpha, decisions",
    "alpha_scores": "Krippendorff's alpha, scores",
}


def calibrate(
    budget: BudgetOptions,
    moderators: Annotated[
        list[str],
        typer.Argument(
            metavar="MODERATOR...", help="Names, or YAML files with 'type' and 'options'."
        ),
    ],
    labels: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help="CSV or JSONL of labelled texts.")
    ],
    text: Annotated[str | None, typer.Option(help="Column of the judged text.")] = None,
    attack: Annotated[
        str | None, typer.Option(help="Column of the prompt that the text answers.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Column of a rater's labels. Can be repeated."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="A text with at least this score counts as harmful.")
    ] = 0.5,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path(
        "calibrations"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Measure moderators against human labels.

    Prints accuracy, F1, AUROC, calibration error and more, each with a 95% interval, and writes
    them with the identity of the moderator as JSON and as a chart.
    """
    from astra_rl.actions.calibrate import calibrate_moderators

    quiet_libraries()
    out = Output()

    def print_result(calibration: Calibration, paths: Sequence[Path]) -> None:
        _print(calibration, out)
        for path in paths:
            out.line(str(path))

    found = calibrate_moderators(
        moderators,
        labels,
        text=text,
        attack=attack,
        label=label or (),
        threshold=threshold,
        folder=output,
        seed=seed,
        budget=budget.budget,
        on_result=print_result,
    )
    print_spent(found.spent, out.console)
    if found.agreement:
        out.table(_table("agreement of the moderators", found.agreement))


def _print(calibration: Calibration, out: Output) -> None:
    from astra_rl.core.moderator import describe_missing

    identity, labels = calibration.identity, calibration.labels
    title = f"{identity.name} at threshold {calibration.threshold:g}"
    out.table(_table(escape(title), calibration.estimates))
    weights = f"weights {identity.weights}, " if identity.weights else ""
    out.line(f"{weights}settings {identity.settings}")
    out.line(
        f"{labels['file']}: {labels['rows']} rows, {labels['ties']} without a majority label, "
        f"{describe_missing(calibration.unscored)}"
    )


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
