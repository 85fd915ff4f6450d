"""Draws docs/images/credit.svg: the credit of each turn of a small tree, for each credit rule.

python scripts/draw_credit.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from astra_rl.algorithms.credit import CREDITS, Credit

REWARDS = [0.2, 0.5, 0.0, 0.8, 0.4]
PARENTS = [None, None, 0, 0, 2]
PLACES = [(1.5, 3.0), (3.3, 3.0), (0.8, 2.0), (2.2, 2.0), (0.8, 1.0)]
INK, HARM = "#757575", "#d0623f"


def main() -> None:
    """Draw and save."""
    style = {"svg.hashsalt": "astra-rl", "font.size": 10, "text.color": INK}
    with pyplot.rc_context(style):
        figure, panels = pyplot.subplots(1, 1 + len(CREDITS), figsize=(12, 3.2))
        rules = {"rewards": REWARDS} | {
            kind.replace("_", " "): Credit(kind, 0.9)(REWARDS, PARENTS) for kind in CREDITS
        }
        for axes, (title, values) in zip(panels, rules.items(), strict=True):
            axes.set_title(title, color=INK, fontsize=11)
            for place, parent in zip(PLACES, PARENTS, strict=True):
                start = (2.2, 4.0) if parent is None else PLACES[parent]
                axes.plot(*zip(start, place, strict=True), color=INK, linewidth=1, zorder=1)
            axes.scatter(2.2, 4.0, s=60, color=INK, zorder=2)
            for (x, y), value in zip(PLACES, values, strict=True):
                axes.scatter(x, y, s=620, color="white", edgecolors=INK, zorder=2)
                axes.scatter(x, y, s=620, color=HARM, alpha=min(value, 1.0) * 0.8, zorder=3)
                axes.text(x, y, f"{value:.2g}", ha="center", va="center", color="black", zorder=4)
            axes.set(xlim=(0.1, 4.0), ylim=(0.4, 4.3))
            axes.axis("off")
        file = Path(__file__).parent.parent / "docs" / "images" / "credit.svg"
        figure.savefig(file, bbox_inches="tight", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
