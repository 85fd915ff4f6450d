"""Scatter plot of the judge's score against the likelihood of each attack."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.show.charts import svg
from astra_rl.evaluation.show.charts.points import number_of, with_values
from astra_rl.evaluation.show.charts.svg import FAILURE, INK, PAGE_WIDTH, SERIES

MOST_LANES = 5
"""Most different scores that are drawn as strips; more are drawn at their height."""
_STACKS = 70
"""Stacks of points over the width of a strip."""


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
    all_points = [(number_of(nll), number_of(score)) for nll, score in points]
    known = with_values(all_points)
    if not known:
        raise ConfigurationError("no point has a likelihood and a score; give at least one.")
    shown = zip(links, all_points, strict=True) if links else ()
    leads = [link for link, point in shown if not is_missing(sum(point))]
    limit = math.inf if threshold is None else threshold
    lanes = _lanes([score for _, score in known])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _draw_points(axes, known, leads, lanes, limit)
        if lanes:
            axes.set_yticks(range(len(lanes)), [f"{lane:g}" for lane in lanes])
            axes.set_ylim(-0.6, len(lanes) - 0.4)
        else:
            axes.set_ylim(-0.06, 1.06)
            _draw_threshold(axes, threshold)
        axes.set_xlabel(f"negative log-likelihood of the attack, {unit} (left: more likely)")
        axes.set_ylabel("judge's score")

    failing = sum(score >= limit for _, score in known)
    description = (
        f"Score against likelihood of {len(known)} attacks, {failing} above the threshold."
    )
    return svg.draw_svg(draw, width=PAGE_WIDTH, height=3.0, description=description)


def _draw_points(
    axes: Any,
    points: Sequence[tuple[float, float]],
    links: Sequence[str],
    lanes: Sequence[float],
    limit: float,
) -> None:
    """Draw the points; those whose score reaches the limit in another colour."""
    places = _stacked(points, lanes) if lanes else [score for _, score in points]
    for color, failing in ((SERIES, False), (FAILURE, True)):
        at = [index for index, point in enumerate(points) if (point[1] >= limit) == failing]
        drawn = axes.scatter(
            [points[index][0] for index in at],
            [places[index] for index in at],
            s=14 if lanes else 26,
            color=color,
            alpha=0.8 if lanes else 0.55,  # points of a stack hardly overlap
            linewidths=0,
        )
        if links:
            drawn.set_urls([links[index] for index in at])


def _draw_threshold(axes: Any, threshold: float | None) -> None:
    if threshold is None:
        return
    axes.axhline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"threshold {threshold:g}",
        (1, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
    )


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
