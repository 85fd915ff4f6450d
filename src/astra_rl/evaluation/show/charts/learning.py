"""Training metrics over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.show.charts import svg
from astra_rl.evaluation.show.charts.points import number_of, with_values
from astra_rl.evaluation.show.charts.svg import (
    SERIES,
    WIDTH,
    matplotlib_module,
    one_line,
    percent_axis,
)
from astra_rl.evaluation.stats.percent import format_percent

_PANEL_WIDTH = 3.5
# Space around the panels of a learning curve, in inches. It fits every tick label, whose length
# matplotlib bounds; measuring the labels, as the constrained layout does, takes most of the time.
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.56, 0.1, 0.28, 0.45
_BETWEEN_COLUMNS, _BETWEEN_ROWS = 0.62, 0.58
_LABELS = {
    "asr": "attack success rate",
    "score": "attack success rate",
    "attack_nll": "attack NLL, nats per token",
    "mean_attack_nll": "attack NLL, nats per token",
}


@dataclass(frozen=True)
class Panel:
    """One small chart of `learning_curve`.

    Attributes:
        key: Key of the metric in the history.
        label: Title of the chart.
        percent: Show the value, a share in [0, 1], as a percentage.
        band: Keys of the lower and the upper end of a band around the line; None: no band.
    """

    key: str
    label: str
    percent: bool = False
    band: tuple[str, str] | None = None


def has_value(history: Sequence[Mapping[str, float]], panel: Panel) -> bool:
    """Whether any point of a history has a value for this panel."""
    return bool(with_values(_series(history, "step", panel.key)))


def learning_curve(
    history: Sequence[Mapping[str, float]],
    *,
    x: str = "step",
    panels: Sequence[Panel] | None = None,
) -> str:
    """Draw training metrics over time, one small chart per metric.

    Args:
        history: One mapping of metric to value per point. Missing values leave gaps.
        x: Key of the horizontal axis; points without it are numbered from 0.
        panels: Charts to draw; metrics without any value are skipped. None draws every metric,
            with ``asr``, ``score`` and ``*_rate`` as percentages.

    Raises:
        ConfigurationError: The history has no value to draw.
        MissingDependencyError: matplotlib is not installed.
    """
    if panels is None:
        keys = dict.fromkeys(key for point in history for key in point if key != x)
        panels = [
            Panel(key, _LABELS.get(key, key.replace("_", " ")), _is_share(key)) for key in keys
        ]
    shown = [panel for panel in panels if with_values(_series(history, x, panel.key))]
    if not shown:
        raise ConfigurationError("history has no value to draw; give at least one.")
    columns = 1 if len(shown) == 1 else 2
    rows = math.ceil(len(shown) / columns)
    height = 1.95 * rows + 0.2

    def draw(figure: Any) -> None:
        positions = _panel_grid(columns, rows, height)
        grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=positions)
        for axes, panel in zip(grid.flat, shown, strict=False):
            _draw_panel(axes, panel, history, x)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel(one_line(x))

    summary = ", ".join(panel.label for panel in shown)
    description = f"Learning curves by {x}: {summary}."
    return svg.draw_svg(draw, height=height, description=description, layout=None)


def learning_panels(
    history: Sequence[Mapping[str, float]], panels: Sequence[Panel], *, x: str = "step"
) -> list[str]:
    """Draw each metric that has a value as a chart of its own; arguments as `learning_curve`.

    A page can place them beside or below each other, as its width allows.
    """
    height = 1.9

    def drawn(panel: Panel) -> str:
        def draw(figure: Any) -> None:
            axes = figure.subplots(gridspec_kw=_panel_grid(1, 1, height, _PANEL_WIDTH))
            _draw_panel(axes, panel, history, x)
            axes.set_xlabel(one_line(x))

        values = [value for _, value in with_values(_series(history, x, panel.key))]
        description = f"{panel.label} by {x}: from {values[0]:.3g} to {values[-1]:.3g}."
        return svg.draw_svg(
            draw, width=_PANEL_WIDTH, height=height, description=description, layout=None
        )

    return [drawn(panel) for panel in panels if has_value(history, panel)]


def _panel_grid(
    columns: int, rows: int, height: float, figure_width: float = WIDTH
) -> dict[str, float]:
    """Return the positions of a grid of panels, as matplotlib's ``GridSpec`` takes them."""
    width = (figure_width - _LEFT - _RIGHT - _BETWEEN_COLUMNS * (columns - 1)) / columns
    tall = (height - _TOP - _BOTTOM - _BETWEEN_ROWS * (rows - 1)) / rows
    return {
        "left": _LEFT / figure_width,
        "right": 1 - _RIGHT / figure_width,
        "top": 1 - _TOP / height,
        "bottom": _BOTTOM / height,
        "wspace": _BETWEEN_COLUMNS / width,
        "hspace": _BETWEEN_ROWS / tall,
    }


def _is_share(key: str) -> bool:
    return key in ("asr", "score") or key.endswith("_rate")


def _series(history: Sequence[Mapping[str, float]], x: str, key: str) -> list[tuple[float, float]]:
    """Return positions and values; NaN for a missing value leaves a gap in the line."""
    return [(point.get(x, index), number_of(point.get(key))) for index, point in enumerate(history)]


def _draw_panel(axes: Any, panel: Panel, history: Sequence[Mapping[str, float]], x: str) -> None:
    points = _series(history, x, panel.key)
    present = with_values(points)
    if panel.band is not None:
        low, high = (_series(history, x, key) for key in panel.band)
        at, lows, highs = [place for place, _ in low], [v for _, v in low], [v for _, v in high]
        axes.fill_between(at, lows, highs, color=SERIES, alpha=0.2, linewidth=0)
    axes.plot(
        *zip(*points, strict=True),
        color=SERIES,
        linewidth=1.6,
        marker="o",
        markersize=3 if len(present) <= 40 else 0,
    )
    last_at, last = present[-1]
    axes.plot([last_at], [last], color=SERIES, marker="o", markersize=5)
    axes.set_title(one_line(panel.label))
    value = format_percent(last) if panel.percent else f"{last:.3g}"
    axes.set_title(value, loc="right", color=SERIES, fontweight="bold")
    ticker = matplotlib_module("ticker")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=True))
    if panel.percent:
        percent_axis(axes.yaxis)
        axes.set_ylim(-0.04, 1.04)
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=4))
