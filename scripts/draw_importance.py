"""Draws docs/images/importance_sampling.svg: target calls needed by plain and importance sampling.

Toy language of ten letters: ordinary use is uniform, and one of the ten thousand conversations of
four letters is a failure. The true probability is known, so the error of an estimate is too.

python scripts/draw_importance.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot

from astra_rl.evaluation.stats.importance import Probability, Sample, failure_probability

LENGTH, FAILING = 4, (0, 0, 0, 1)
BASELINE = np.full(10, 0.1)
ATTACKER = np.array([0.6, 0.2, *[0.025] * 8])
TRUTH = 0.1**LENGTH
CALLS = (100, 200, 400, 800, 1600, 3200, 6400)
REPETITIONS = 60
INK, SERIES, HARM = "#757575", "#3f83c4", "#d0623f"


def conversations(generator: np.random.Generator, count: int) -> list[Sample]:
    """Sample conversations, half from the baseline and half from the attacker."""
    samples = []
    for letters, size in ((BASELINE, count // 2), (ATTACKER, count - count // 2)):
        for said in generator.choice(10, size=(size, LENGTH), p=letters):
            likely = (float(np.log(p[said]).sum()) for p in (BASELINE, ATTACKER))
            samples.append(Sample(tuple(said) == FAILING, *likely, letters is BASELINE))
    return samples


def main() -> None:
    """Measure, draw, save and print."""
    errors, refused = [], []
    for calls in CALLS:
        found = [
            failure_probability(conversations(np.random.default_rng([calls, seed]), calls))
            for seed in range(REPETITIONS)
        ]
        given = np.array([each.estimate for each in found if isinstance(each, Probability)])
        refused.append(1 - len(given) / len(found))
        # Where most estimates are refused, the remaining ones are a biased selection.
        error = float(np.sqrt(np.mean((given / TRUTH - 1) ** 2))) if refused[-1] < 0.6 else np.nan
        errors.append(error)
        plain = (1 - TRUTH) / TRUTH / error**2 / calls
        print(f"{calls:5d} calls: {refused[-1]:4.0%} refused, error {error:.1%}, {plain:.0f} times")
    with pyplot.rc_context(
        {"svg.hashsalt": "astra-rl", "font.size": 10, "text.color": INK, "axes.edgecolor": INK}
        | {"xtick.color": INK, "ytick.color": INK, "axes.labelcolor": INK}
    ):
        figure, axes = pyplot.subplots(figsize=(7.2, 3.6))
        wide = np.array([100, 1e7])
        axes.plot(wide, np.sqrt((1 - TRUTH) / TRUTH / wide), color=HARM, linewidth=1.8)
        axes.plot(CALLS, errors, color=SERIES, linewidth=1.8, marker="o", markersize=5)
        axes.text(3e4, 0.75, "plain sampling", color=HARM)
        axes.text(120, 0.055, "with the attacker's help", color=SERIES)
        for calls, error, share in zip(CALLS, errors, refused, strict=True):
            if share and np.isfinite(error):
                axes.annotate(
                    f"no number in {share:.0%}",
                    (calls, error),
                    xytext=(6, 4),
                    textcoords="offset points",
                    fontsize=8,
                )
        axes.set(xscale="log", yscale="log", xlim=(80, 1.2e7), ylim=(0.02, 12))
        axes.set_xlabel("calls of the target")
        axes.set_ylabel("relative error")
        axes.set_yticks([0.03, 0.1, 0.3, 1, 3, 10], ["3%", "10%", "30%", "100%", "300%", "1000%"])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="both", color=INK, alpha=0.22, linewidth=0.7)
        file = Path(__file__).parent.parent / "docs" / "images" / "importance_sampling.svg"
        figure.savefig(file, bbox_inches="tight", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
