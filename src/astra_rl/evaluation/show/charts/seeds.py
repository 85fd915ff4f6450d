"""Figure of configurations over training seeds, for a paper."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_rl.errors import require
from astra_rl.evaluation.show.charts.svg import matplotlib_module, one_line, percent_axis
from astra_rl.evaluation.stats.seed_spread import SeedSpread
from astra_rl.infra.storage import storing

FIGURES = (".pdf", ".png", ".svg")
"""Endings of the file."""
Curve = Sequence[tuple[int, float]]
"""Training steps and success rates."""
_STYLE = {
    "text.parse_math": False,  # a dollar sign in a name is not mathematics
    "pdf.fonttype": 42,  # as text, which publishers ask for
    "svg.fonttype": "none",
    "svg.hashsalt": "astra-rl",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 8,
}


def write_seed_figure(
    spreads: Mapping[str, SeedSpread], curves: Mapping[str, Mapping[int, Curve]], path: Path
) -> None:
    """Write a figure: success during training on the left, after it on the right.

    Left: mean over seeds of the success rate at each training step, with the range over seeds;
    steps that a seed did not reach are left out. Right: the rate of each seed, and their mean with
    its 95% interval, see `SeedSpread.interval`; fewer than three seeds have none.

    Args:
        spreads: Rates of each configuration over its seeds.
        curves: Success rates by training step, of each configuration and seed; may be empty.
        path: File; its ending is one of `FIGURES`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        StorageError: The file cannot be written.
    """
    matplotlib = require("matplotlib", extra="demo")
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = matplotlib_module("figure").Figure(figsize=(6.5, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
        for at, (name, spread) in enumerate(spreads.items()):
            colour = f"C{at}"
            _draw_curves(left, curves.get(name, {}), one_line(name), colour)
            _draw_rates(right, spread, at, colour)
        left.set(xlabel="training step", ylabel="attack success rate", ylim=(-0.03, 1.03))
        left.set_title("training", loc="left")
        left.xaxis.get_major_locator().set_params(integer=True)
        percent_axis(left.yaxis)
        right.set_title("held-out prompts", loc="left")
        labels = [one_line(name).replace("=", "=\n").replace(", ", "\n") for name in spreads]
        right.set_xticks(range(len(spreads)), labels)
        right.set_xlim(-0.5, len(spreads) - 0.5)
        if len(spreads) > 1 and left.lines:
            left.legend(frameon=False)
        with storing(path):
            figure.savefig(path, format=path.suffix.lower()[1:], dpi=300)


def _draw_curves(axes: Any, curves: Mapping[int, Curve], name: str, colour: str) -> None:
    by_step: dict[int, list[float]] = {}
    for curve in curves.values():
        for step, rate in curve:
            by_step.setdefault(step, []).append(rate)
    steps = [step for step, rates in sorted(by_step.items()) if len(rates) == len(curves)]
    if not steps:
        return
    rates = [by_step[step] for step in steps]
    axes.plot(steps, [sum(each) / len(each) for each in rates], color=colour, label=name)
    axes.fill_between(steps, [*map(min, rates)], [*map(max, rates)], color=colour, alpha=0.2, lw=0)


def _draw_rates(axes: Any, spread: SeedSpread, at: int, colour: str) -> None:
    rates = list(spread.estimates.values())
    axes.plot([at - 0.15] * len(rates), rates, "o", color=colour, markersize=3, alpha=0.6)
    interval = spread.interval
    if interval is not None:
        ends = [[spread.mean - interval.low], [interval.high - spread.mean]]
        axes.errorbar([at + 0.1], [spread.mean], yerr=ends, fmt="o", color=colour, capsize=3)
    else:
        axes.plot([at + 0.1], [spread.mean], "_", color=colour)


__all__ = ["FIGURES", "write_seed_figure"]
