"""Time per phase of a training step, in the plain loop and in this library.

    python benchmarks/phases.py

Writes ``results/phases.json`` and the plot ``docs/images/phases.svg``.
"""

from __future__ import annotations

import copy
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from collection_and_update import (
    BATCH,
    DEPTH,
    EPISODES,
    MODEL,
    NEW_TOKENS,
    WIDTH,
    problem,
    prompts,
)  # fmt: skip
from common import RESULTS
from plain_loop import PlainLoop, pairs

from astra_rl.algorithms import DPO
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.training import Harness
from astra_rl.training.precision import build_optimizer

PHASES = ("attacker", "target", "scoring", "update")
IMAGE = Path(__file__).parent.parent / "docs" / "images" / "phases.svg"


class Clock:
    """Adds up the seconds spent in each phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def watch(self, owner: Any, name: str, phase: Callable[..., str]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[phase(*args)] += time.perf_counter() - started

        setattr(owner, name, timed)


def plain(texts: list[str]) -> dict[str, float]:
    """Seconds per episode of the plain loop."""
    base = load_model(MODEL, dtype="float32")
    trained = copy.deepcopy(base).requires_grad_(True)
    loop = PlainLoop(trained, base, base, load_tokenizer(MODEL), WIDTH, DEPTH, NEW_TOKENS)
    clock = Clock()
    clock.watch(loop, "say", lambda model, _: "attacker" if model is trained else "target")
    clock.watch(loop, "logprob", lambda *_: "scoring")
    nodes = loop.episode(texts[0])
    del loop.logprob  # inside the update, its time counts as update
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6)
    clock.watch(loop, "update", lambda *_: "update")
    for pair in pairs(nodes):
        loop.update(optimizer, pair)
    return clock.seconds


def engine(texts: list[str]) -> dict[str, float]:
    """Seconds per episode of the engine in its default precision."""
    ours = problem("auto")
    algorithm = DPO(ours)
    optimizer = build_optimizer(torch.optim.AdamW, list(ours.parameters()), 1e-6)
    environment = ASTEnvironment(ours, texts, WIDTH, DEPTH)
    harness = Harness(environment, algorithm, EPISODES, batch_size=BATCH)
    harness.experience(seed=0)
    clock = Clock()
    clock.watch(ours, "rollout_prompt_with_attacker", lambda *_: "attacker")
    clock.watch(ours, "rollout_prompt_with_target", lambda *_: "target")
    clock.watch(ours, "reward_terms", lambda *_: "scoring")
    clock.watch(algorithm, "prepare", lambda *_: "scoring")
    batches = harness.experience(seed=1)
    started = time.perf_counter()
    for batch in batches:
        loss, _ = harness.step(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    clock.seconds["update"] = time.perf_counter() - started
    return {phase: seconds / EPISODES for phase, seconds in clock.seconds.items()}


def draw(figures: dict[str, dict[str, float]]) -> None:
    """Draw two stacked bars, and the second one again, enlarged, because it is short."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    colours = dict(zip(PHASES, ("#4063d8", "#e07b39", "#389826", "#9558b2"), strict=True))
    plt.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11})
    figure, axes = plt.subplots(2, 1, figsize=(8, 3.6), gridspec_kw={"height_ratios": (2, 1)})
    panels = (("plain loop", "engine"), ("engine",))
    for axis, names in zip(axes, panels, strict=True):
        for row, name in enumerate(reversed(names)):
            left = 0.0
            for phase in PHASES:
                seconds = figures[name][phase]
                label = phase if axis is axes[0] and row == 0 else None
                axis.barh(row, seconds, left=left, color=colours[phase], label=label, height=0.6)
                left += seconds
            axis.text(left, row, f" {left:.2f} s", va="center")
        axis.set_yticks(range(len(names)), reversed(names))
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    axes[0].legend(ncols=len(PHASES), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    axes[1].set_xlabel("seconds per episode (below: the engine alone, enlarged)")
    figure.tight_layout()
    IMAGE.parent.mkdir(exist_ok=True)
    figure.savefig(IMAGE, metadata={"Date": None})


def main() -> None:
    texts = prompts()
    figures = {"plain loop": plain(texts), "engine": engine(texts)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "phases.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, seconds in figures.items():
        parts = ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items())
        print(f"{name}: {sum(seconds.values()):.2f} s per episode ({parts})")
    draw(figures)


if __name__ == "__main__":
    main()
