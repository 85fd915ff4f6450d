#!/usr/bin/env python3
"""Draws docs/images/environments.svg: the shape of an episode in each environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ATTACK, KEPT, DEFENDER, OPENING, LOST = "#4a90c2", "#1f5f8b", "#d9822b", "#555555", "#c9d3da"
Point = tuple[float, float]


def dot(axes: Axes, at: Point, colour: str, marker: str = "o") -> None:
    axes.plot(*at, marker=marker, color=colour, markersize=8, zorder=2)


def line(axes: Axes, start: Point, end: Point, colour: str = "#9aa5ad", style: str = "-") -> None:
    axes.plot([start[0], end[0]], [start[1], end[1]], color=colour, lw=1.2, ls=style, zorder=1)


def spread(center: float, width: float, count: int) -> list[float]:
    return [center + width * (index - (count - 1) / 2) for index in range(count)]


def grow(
    axes: Axes, widths: Sequence[float], count: int, kept: Sequence[Sequence[int]] | None = None
) -> None:
    """Draw a tree level by level; only the given nodes of each level are expanded."""
    parents = [(0.0, 0.0)]
    dot(axes, parents[0], OPENING, "s")
    for level, width in enumerate(widths):
        children = []
        for parent in parents:
            for x in spread(parent[0], width, count):
                line(axes, parent, (x, -level - 1.0))
                children.append((x, -level - 1.0))
        chosen = range(len(children)) if kept is None else kept[level]
        for place, child in enumerate(children):
            colour = ATTACK if kept is None else KEPT if place in chosen else LOST
            dot(axes, child, colour)
        parents = [children[place] for place in chosen]


def attempts(axes: Axes) -> None:
    dot(axes, (0.0, 0.0), OPENING, "s")
    for number, x in enumerate((-1.5, 0.0, 1.5)):
        line(axes, (0.0, 0.0), (x, -1.3), style=":")
        dot(axes, (x, -1.3), ATTACK)
        axes.text(x, -1.75, f"attempt {number + 1}", ha="center", fontsize=7, color=OPENING)
        if number < 2:
            axes.annotate(
                "",
                xy=(x + 1.3, -1.3),
                xytext=(x + 0.2, -1.3),
                arrowprops={"arrowstyle": "->", "color": ATTACK},
            )
            axes.text(x + 0.75, -1.12, "result", ha="center", fontsize=7, color=ATTACK)


def game(axes: Axes) -> None:
    dot(axes, (0.0, 0.0), OPENING, "s")
    for x in spread(0.0, 1.5, 3):
        line(axes, (0.0, 0.0), (x, -1.0))
        dot(axes, (x, -1.0), ATTACK)
        for y in spread(x, 0.55, 2):
            line(axes, (x, -1.0), (y, -2.0))
            dot(axes, (y, -2.0), DEFENDER)


SHAPES = {
    "tree": lambda axes: grow(axes, (1.9, 0.8), 2),
    "single_turn": lambda axes: grow(axes, (0.8,), 5),
    "pruned_tree (keep 2)": lambda axes: grow(axes, (1.5, 0.5), 3, [[0, 2], [1, 3]]),
    "best_of_n (n 3)": lambda axes: grow(axes, (1.2, 1.0), 3, [[1], [2]]),
    "attempts": attempts,
    "self_play": game,
}


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "astra-rl", "svg.fonttype": "none", "font.size": 9})
    figure, panels = plt.subplots(2, 3, figsize=(7.5, 3.9))
    for axes, (name, draw) in zip(panels.flat, SHAPES.items(), strict=True):
        draw(axes)
        axes.set(title=name, xlim=(-2.3, 2.3), ylim=(-2.4, 0.4))
        axes.axis("off")
    figure.tight_layout()
    target = Path(__file__).parent.parent / "docs" / "images" / "environments.svg"
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
