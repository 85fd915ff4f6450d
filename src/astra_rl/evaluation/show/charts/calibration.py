"""ROC, precision-recall and calibration curves of a moderator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_rl.evaluation.show.charts import svg
from astra_rl.evaluation.show.charts.svg import INK, SERIES, matplotlib_module
from astra_rl.evaluation.stats.score_calibration import Bin
from astra_rl.evaluation.stats.score_curves import Point


def calibration_panels(
    roc: Sequence[Point],
    precision_recall: Sequence[Point],
    bins: Sequence[Bin],
    *,
    base_rate: float,
) -> str:
    """Draw ROC, precision-recall and calibration curves of a moderator.

    Args:
        roc: False and true positive rates.
        precision_recall: Recalls and precisions.
        bins: Rows grouped by score, each drawn with its 95% interval.
        base_rate: Share of positive rows: the precision of a classifier that calls all positive.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """

    def draw(figure: Any) -> None:
        figure.get_layout_engine().set(wspace=0.08)
        left, middle, right = figure.subplots(1, 3)
        _unit_square(left, "ROC", "false positive rate", "true positive rate")
        left.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        left.plot([p.x for p in roc], [p.y for p in roc], color=SERIES, linewidth=1.8)
        _unit_square(middle, "Precision and recall", "recall", "precision")
        middle.axhline(base_rate, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        # Steps, as in average precision: no threshold gives the points in between.
        middle.plot(
            [*(0.0 for _ in precision_recall[:1]), *(p.x for p in precision_recall)],
            [*(p.y for p in precision_recall[:1]), *(p.y for p in precision_recall)],
            color=SERIES,
            linewidth=1.8,
            drawstyle="steps-pre",
        )
        _unit_square(right, "Calibration", "mean score", "share of positives")
        right.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for each in bins:
            at = [each.mean_score, each.mean_score]
            right.plot(at, each.positives.interval, color=SERIES, linewidth=4, alpha=0.4)
        right.plot(
            [each.mean_score for each in bins],
            [each.positives.estimate for each in bins],
            color=SERIES,
            linewidth=1,
            marker="o",
            markersize=5,
        )

    rows = sum(each.positives.trials for each in bins)
    return svg.draw_svg(
        draw,
        height=2.75,
        description=f"ROC, precision-recall and calibration curves over {rows} labelled texts.",
    )


def _unit_square(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.04)
    axes.set_aspect("equal")
    ticker = matplotlib_module("ticker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.FixedLocator([0, 0.5, 1]))
