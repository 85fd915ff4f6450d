"""Charts as inline SVG, drawn by matplotlib; a line of text each if it is not installed.

Each function returns one ``<svg>`` element to insert into an HTML page, without script or style
sheet; ids are unique per chart. Colours have middle lightness on a transparent background and are
legible in light and dark themes. The output is deterministic.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError, MissingDependencyError, require
from astra_rl.evaluation.measures.thresholds import AtThreshold
from astra_rl.evaluation.show.escaping import visible_text
from astra_rl.evaluation.stats.classification import Bin, Point
from astra_rl.evaluation.stats.percent import format_percent

INK = "#757575"
"""Colour of text and axes; contrast at least 4:1 on white and on near-black."""
SERIES = "#3f83c4"
FAILURE = "#d0623f"

_WIDTH = 7.2  # inches
_PAGE_WIDTH = 5.2
"""Width of a chart that also has to be legible on a phone, in inches."""
_PANEL_WIDTH = 3.5
# Space around the panels of a learning curve, in inches. It fits every tick label, whose length
# matplotlib bounds; measuring the labels, as the constrained layout does, takes most of the time.
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.56, 0.1, 0.28, 0.45
_BETWEEN_COLUMNS, _BETWEEN_ROWS = 0.62, 0.58
MOST_LANES = 5
"""Most different scores that are drawn as strips; more are drawn at their height."""
_STACKS = 70
"""Stacks of points over the width of a strip."""
_STYLE = {
    "svg.hashsalt": "astra-rl",
    "svg.fonttype": "none",  # keep text as text: accessible, searchable, restyled by CSS
    "text.parse_math": False,  # a dollar sign in a name is not mathematics
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "font.size": 9,
}
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
    return bool(_present(_series(history, "step", panel.key)))


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
    shown = [panel for panel in panels if _present(_series(history, x, panel.key))]
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
            axes.set_xlabel(_label(x))

    summary = ", ".join(panel.label for panel in shown)
    description = f"Learning curves by {x}: {summary}."
    return _svg(draw, height=height, description=description, layout=None)


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
            axes.set_xlabel(_label(x))

        values = [value for _, value in _present(_series(history, x, panel.key))]
        description = f"{panel.label} by {x}: from {values[0]:.3g} to {values[-1]:.3g}."
        return _svg(draw, width=_PANEL_WIDTH, height=height, description=description, layout=None)

    return [drawn(panel) for panel in panels if has_value(history, panel)]


def _panel_grid(
    columns: int, rows: int, height: float, figure_width: float = _WIDTH
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
    return [(point.get(x, index), _number(point.get(key))) for index, point in enumerate(history)]


def _number(value: Any) -> float:
    """Return a number unchanged, and NaN for a missing one (None or NaN in JSON)."""
    return value if isinstance(value, int | float) and not is_missing(value) else math.nan


def _present(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if not is_missing(sum(point))]


def _draw_panel(axes: Any, panel: Panel, history: Sequence[Mapping[str, float]], x: str) -> None:
    points = _series(history, x, panel.key)
    present = _present(points)
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
    axes.set_title(_label(panel.label))
    value = format_percent(last) if panel.percent else f"{last:.3g}"
    axes.set_title(value, loc="right", color=SERIES, fontweight="bold")
    ticker = _matplotlib("ticker")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=True))
    if panel.percent:
        _percent_axis(axes, axes.yaxis)
        axes.set_ylim(-0.04, 1.04)
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=4))


def severity_likelihood(
    points: Sequence[tuple[float | None, float | None]],
    *,
    threshold: float | None = None,
    links: Sequence[str] = (),
    unit: str = "nats",
) -> str:
    """Draw a scatter plot of the judge's score against the likelihood of each attack.

    The most important failures are in the upper left: harmful, and likely in ordinary use. If the
    judge gave few different scores, points of equal score form a strip of stacks, whose width shows
    their number.

    Args:
        points: Per attack its negative log-likelihood, and its score in [0, 1]. Points with a
            missing number are skipped.
        threshold: Lowest score of a success; drawn as a line.
        links: Fragment link of each point, for instance ``"#/conversations/1f"``; empty, or one
            per point.
        unit: Unit of the negative log-likelihood.

    Raises:
        ConfigurationError: No point has both numbers, or a link leads out of the page.
        MissingDependencyError: matplotlib is not installed.
    """
    if not all(re.fullmatch("#/[a-z/0-9]+", link) for link in links):
        raise ConfigurationError(
            "links must be fragments of the page, such as '#/conversations/1f'."
        )
    all_points = [(_number(nll), _number(score)) for nll, score in points]
    known = _present(all_points)
    if not known:
        raise ConfigurationError("no point has a likelihood and a score; give at least one.")
    limit = math.inf if threshold is None else threshold
    leads = (
        [link for link, point in zip(links, all_points, strict=True) if not is_missing(sum(point))]
        if links
        else []
    )

    lanes = _lanes([score for _, score in known])
    places = _stacked(known, lanes) if lanes else [score for _, score in known]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for color, failing in ((SERIES, False), (FAILURE, True)):
            at = [index for index, point in enumerate(known) if (point[1] >= limit) == failing]
            drawn = axes.scatter(
                [known[index][0] for index in at],
                [places[index] for index in at],
                s=14 if lanes else 26,
                color=color,
                alpha=0.8 if lanes else 0.55,  # points of a stack hardly overlap
                linewidths=0,
            )
            if leads:
                drawn.set_urls([leads[index] for index in at])
        if lanes:
            axes.set_yticks(range(len(lanes)), [f"{lane:g}" for lane in lanes])
            axes.set_ylim(-0.6, len(lanes) - 0.4)
        else:
            axes.set_ylim(-0.06, 1.06)
        if threshold is not None and not lanes:
            axes.axhline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"threshold {threshold:g}",
                (1, threshold),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
            )
        axes.set_xlabel(f"negative log-likelihood of the attack, {unit} (left: more likely)")
        axes.set_ylabel("judge's score")

    failing = sum(score >= limit for _, score in known)
    description = (
        f"Score against likelihood of {len(known)} attacks, {failing} above the threshold."
    )
    return _svg(draw, width=_PAGE_WIDTH, height=3.0, description=description)


def _lanes(scores: Sequence[float]) -> list[float]:
    """Return the different scores if they are few, as of a judge that says only 0 or 1."""
    different = sorted(set(scores))
    return different if len(different) <= MOST_LANES and len(scores) > 2 * len(different) else []


def _stacked(points: Sequence[tuple[float, float]], lanes: Sequence[float]) -> list[float]:
    """Return the height of each point, such that points of a lane with similar x form a stack.

    So the width of the stack shows how many there are. Lane i has the heights i - 0.4 to i + 0.4.
    """
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    width = (right - left) / _STACKS or 1.0
    stacks = [(lanes.index(score), int((x - left) / width)) for x, score in points]
    sizes, seen = Counter(stacks), Counter[tuple[int, int]]()
    step = min(0.06, 0.8 / max(sizes.values()))
    heights = []
    for stack in stacks:
        heights.append(stack[0] + step * (seen[stack] - (sizes[stack] - 1) / 2))
        seen[stack] += 1
    return heights


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
        _percent_axis(axes, axes.yaxis)
        axes.set_ylim(-0.04, 1.04)
        axes.set_xlim(0, 1.01)
        axes.set_xlabel("threshold: lowest score of a success")
        axes.set_ylabel("attack success rate")

    return _svg(
        draw,
        width=_PAGE_WIDTH,
        height=2.4,
        description=f"Attack success rate by threshold; the dashed line is at {threshold:g}.",
    )


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
    return _svg(
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
    ticker = _matplotlib("ticker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.FixedLocator([0, 0.5, 1]))


def _percent_axis(axes: Any, axis: Any) -> None:
    ticker = _matplotlib("ticker")
    axis.set_major_locator(ticker.FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))


def _label(text: str) -> str:
    return visible_text(text).replace("\n", " ")


def _matplotlib(module: str) -> Any:
    return require(f"matplotlib.{module}", extra="demo")


def _svg(
    draw: Callable[[Any], None],
    *,
    height: float,
    description: str,
    width: float = _WIDTH,
    layout: str | None = "constrained",
) -> str:
    """Draw a figure and return it as one SVG element.

    Without matplotlib the element is a line of text: no result is lost for want of a picture.
    """
    try:
        matplotlib = require("matplotlib", extra="demo")
    except MissingDependencyError:
        return _placeholder(description)
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser's fonts show the text, so letters that matplotlib's font lacks do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = _matplotlib("figure").Figure(figsize=(width, height), layout=layout)
        canvas = _matplotlib("backends.backend_svg").FigureCanvasSVG(figure)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.print_svg(file, metadata=nothing)
    return _inline(file.getvalue(), description)


NOT_DRAWN = "This chart needs matplotlib, which is not installed: pip install matplotlib"


def _placeholder(description: str) -> str:
    label = html.escape(_label(description))
    return (
        f'<svg role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 520 24" width="520pt" height="24pt"><text x="0" y="16" font-size="11" '
        f'style="fill: {INK}">{html.escape(NOT_DRAWN)}</text></svg>'
    )


def _inline(svg: str, description: str) -> str:
    """Turn matplotlib's SVG document into an element with unique ids and no style sheet."""
    svg = svg[svg.index("<svg") :]
    # A style sheet would apply to the whole page; the attribute applies to the chart only.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    label = html.escape(_label(description))
    opening = (
        f'<svg role="img" aria-label="{label}" style="stroke-linejoin:round;stroke-linecap:butt" '
    )
    svg = svg.replace("<svg ", opening, 1)
    prefix = "c" + hashlib.blake2b(svg.encode(), digest_size=4).hexdigest() + "-"
    svg = svg.replace(' target="_blank"', "")  # links stay in the page
    # Prefix ids and references to them, but not links to fragments of the page.
    svg = re.sub(r'( id="|href="#(?!/)|url\(#)', rf"\g<1>{prefix}", svg)
    return svg.strip()
