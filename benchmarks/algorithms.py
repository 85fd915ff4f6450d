"""Comparison of algorithms on the password game, with equal conversation budgets and several seeds.

    python benchmarks/algorithms.py [grpo rloo ppo ...] [--seeds 0 1 2] [--steps 12]

Each run is the preset ``password`` with another algorithm, in its own single-threaded process. Runs
are sequential. All use the same number of conversations, learning rate and, where supported,
the same KL coefficient; "untrained" is the initial attacker. Durations are CPU minutes including
loading and evaluation, so they do not depend on other load. Each run writes a JSON file to the
results folder. Existing results with the same settings are reused, so an interrupted benchmark can
be resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from astra_rl.algorithms import ALGORITHMS
from astra_rl.config.presets import preset_text
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.infra.jsonio import write_json
from astra_rl.runs.provenance import versions
from astra_rl.runs.recorded import summary_of_phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNTRAINED = "untrained"
MAIN = ("dpo", "ipo", "grpo", "rloo", "ppo", "reinforce++", "contrastive_balance")
NATS = {"kl_in_reward": 0.03}
"""What divergence costs in the preset."""
OPTIONS: dict[str, dict[str, Any]] = {
    "a2c": {"alpha": 0.03},
    "contrastive_balance": {"temperature": 0.1, "reference_temperature": 1.0},
    "cispo": {"scale": "batch", **NATS},
    "dapo": {"scale": "batch", **NATS},
    "dpo": {"pairs": "all", "min_gap": 0.2},
    "dr_grpo": {"max_tokens": 14, **NATS},
    "grpo": {"scale": "batch", "reduce": "token", "clip_high": 0.28, **NATS},
    "gspo": {"scale": "batch", **NATS},
    "ipo": {
        "beta": 0.5,
        "pairs": "all",
        "min_gap": 0.2,
    },  # margin of 1 nat per token at the optimum
    "ppo": {"epochs": 2, **NATS},
    "ppo_lagrangian": {
        "constraints": {"harm_response": {"at_least": 0.9}, "attack_nll_baseline": {"at_most": 3}},
        "epochs": 2,
        **NATS,
    },
    "reinforce": NATS,
    "reinforce++": NATS,
    "reinforce++_baseline": NATS,
    "rloo": NATS,
}
"""Of each algorithm; one that is not listed runs with its defaults."""


def settings_of(name: str, steps: int, overrides: Sequence[str]) -> list[str]:
    """Return the settings that differ from the preset."""
    fixed = ["evaluation.before=false", *overrides]
    if name == UNTRAINED:
        return [*fixed, "training.steps=0"]
    algorithm = {"type": name, "options": OPTIONS.get(name, {})}
    flow = yaml.safe_dump(algorithm, default_flow_style=True, width=10_000).strip()
    return [
        f"algorithm={flow}",
        f"training.steps={steps}",  # only the number of steps ends the training
        "training.stop_at_success=null",
        "training.max_minutes=null",
        # twice the preset's, because there are fewer steps
        "training.lr=2.4e-4",
        "training.final_lr=1.5e-4",
        "training.warmup_steps=3",
        *fixed,
    ]


def run(name: str, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate once; returns the record, with the reason if the run failed."""
    record: dict[str, Any] = {
        "algorithm": name,
        "seed": seed,
        "settings": list(settings),
        "versions": versions(),
        "processors": os.cpu_count(),
    }
    with tempfile.TemporaryDirectory() as folder:
        file, run_folder = Path(folder) / "settings.yaml", Path(folder) / "run"
        file.write_text(preset_text("password"), encoding="utf-8")
        command = [sys.executable, "-m", "astra_rl.cli.main", "train", str(file)]
        command += ["--seed", str(seed), "--output", str(run_folder)]
        for setting in settings:
            command += ["--set", setting]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        before = _processor_seconds()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        record["minutes"] = round((_processor_seconds() - before) / 60, 2)
        if done.returncode:
            return {**record, "error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        after = json.loads((run_folder / "evaluation_after.json").read_text("utf-8"))
        rate = summary_of_phase(run_folder, "after").asr
        metrics = run_folder / "metrics.jsonl"
        rows = metrics.read_text("utf-8").splitlines() if metrics.exists() else []
    return {
        **record,
        "successes": rate.successes,
        "trials": rate.trials,
        "kinds": after["distinct_attacks"],
        "nll": after["mean_attack_nll"],
        "steps": len(rows),
        "curve": [json.loads(row).get("asr") for row in rows],
        "examples": [cluster["attack"].strip() for cluster in after["clusters"][:12]],
    }


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kept(file: Path, settings: Sequence[str]) -> dict[str, Any] | None:
    """Return the saved record of an earlier run with the same settings that did not fail."""
    if not file.exists():
        return None
    record: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return record if record["settings"] == list(settings) and "error" not in record else None


def summed_up(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per algorithm, the best leak rate first."""
    rows = []
    for name in dict.fromkeys(record["algorithm"] for record in records):
        runs = [record for record in records if record["algorithm"] == name]
        good = [record for record in runs if "error" not in record]
        rates = [
            Rate(record["successes"], record["trials"], 0).estimate
            for record in good
            if record["trials"]
        ]
        row: dict[str, Any] = {
            "algorithm": name,
            "runs": len(good),
            "failed": len(runs) - len(good),
        }
        row["rates"] = rates
        for key in ("kinds", "nll", "steps", "minutes"):
            values = [record[key] for record in good if record[key] is not None]
            row[key] = statistics.fmean(values) if values else None
        row["all_kinds"] = [record["kinds"] for record in good if record["trials"]]
        rows.append(row)
    return sorted(rows, key=lambda row: -statistics.fmean(row["rates"] or [-1.0]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| algorithm | held-out leak rate, mean (lowest to highest) | distinct kinds | "
        "NLL per token | processor minutes | runs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        rates = row["rates"]
        leak = "no run"
        if rates:
            leak = f"{statistics.fmean(rates):.1%} ({min(rates):.0%} to {max(rates):.0%})"
        numbers = [
            "-" if row[key] is None else f"{row[key]:.{digits}f}"
            for key, digits in (("kinds", 1), ("nll", 2), ("minutes", 1))
        ]
        runs = f"{row['runs']}" + (f", {row['failed']} failed" if row["failed"] else "")
        lines.append(f"| `{row['algorithm']}` | {leak} | {' | '.join(numbers)} | {runs} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw leak rate against distinct kinds: small points are runs, large ones means."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "astra-rl", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(7.2, 4.4), dpi=72)  # SVG text is measured at 72 dpi
        labels: list[tuple[str, tuple[float, float], str]] = []
        for index, row in enumerate(row for row in rows if row["rates"]):
            colour = f"C{index % 10}"
            axes.scatter(row["all_kinds"], row["rates"], s=14, color=colour, alpha=0.5)
            centre = statistics.fmean(row["all_kinds"]), statistics.fmean(row["rates"])
            axes.scatter(*centre, s=64, color=colour)
            labels.append((row["algorithm"], centre, colour))
        axes.set_xlabel("distinct kinds of successful attack, held out")
        axes.set_ylabel("leak rate, held out")
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(alpha=0.22)
        axes.spines[["top", "right"]].set_visible(False)
        _write_labels(axes, labels)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)


def _write_labels(axes: Axes, labels: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Place each label beside its point, without overlap with other labels or points."""
    from matplotlib.transforms import Bbox

    axes.autoscale_view()  # the positions of the points are needed below
    corners = [axes.transData.transform(place) for _, place, _ in labels]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in corners]
    for text, place, colour in labels:
        for up, side in product((4, -12, 14, -22, 24), ("left", "right")):
            label = axes.annotate(
                text,
                place,
                xytext=(6 if side == "left" else -6, up),
                textcoords="offset points",
                ha=side,
                color=colour,
            )
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()
        else:
            axes.annotate(text, place, color=colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithms", nargs="*", default=[UNTRAINED, *MAIN])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12, help="of training, per run")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/algorithms"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/algorithms.svg"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    unknown = set(arguments.algorithms) - {UNTRAINED, *ALGORITHMS}
    if unknown:
        parser.error(f"unknown: {sorted(unknown)}; choose from {sorted({UNTRAINED, *ALGORITHMS})}")
    records = []
    for seed in arguments.seeds:  # seed by seed, so that partial results compare all algorithms
        for name in arguments.algorithms:
            settings = settings_of(name, arguments.steps, arguments.set)
            file = arguments.results / f"{name}-{seed}.json"
            record = kept(file, settings)
            if record is None:
                record = run(name, seed, settings)
                write_json(record, file)
            records.append(record)
            print(name, seed, record.get("error") or table(summed_up([record])).splitlines()[-1])
            sys.stdout.flush()
    rows = summed_up(records)
    print(f"\n{table(rows)}")
    plot(rows, arguments.plot)
    print(f"\nplot: {arguments.plot}")


if __name__ == "__main__":
    main()
