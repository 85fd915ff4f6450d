"""The attack success rate by threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.thresholds import AtThreshold
from astra_rl.evaluation.show.charts import svg
from astra_rl.evaluation.show.charts.svg import INK, PAGE_WIDTH, SERIES, percent_axis


def threshold_curve(rates: Sequence[AtThreshold], *, threshold: float) -> str:
    """Draw the attack success rate as a function of the threshold, with 95% intervals.

    Args:
        rates: By increasing threshold, at least one with a trial.
        threshold: Threshold of the run; drawn as a line.

    Raises:
        ConfigurationError: No threshold has a trial.
        MissingDependencyError: matplotlib is not installed.
    """
    known = [each for each in rates if each.rate.trials]
    if not known:
        raise ConfigurationError("no threshold has a trial to draw; give at least one.")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        at = [each.threshold for each in known]
        axes.fill_between(
            at,
            [each.rate.interval.low for each in known],
            [each.rate.interval.high for each in known],
            step="pre",
            color=SERIES,
            alpha=0.2,
            linewidth=0,
        )
        axes.plot(
            at, [e.rate.estimate for e in known], color=SERIES, linewidth=1.8, drawstyle="steps-pre"
        )
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        percent_axis(axes.yaxis)
        axes.set_ylim(-0.04, 1.04)
        axes.set_xlim(0, 1.01)
        axes.set_xlabel("threshold: lowest score of a success")
        axes.set_ylabel("attack success rate")

    return svg.draw_svg(
        draw,
        width=PAGE_WIDTH,
        height=2.4,
        description=f"Attack success rate by threshold; the dashed line is at {threshold:g}.",
    )
