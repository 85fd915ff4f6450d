"""A league of published methods on a game with 50 planted failures: a table of docs/discovery.md.

    python benchmarks/discovery_league.py [--calls 4096] [--seeds 0 1 2] [--output FOLDER]

The game is one that no setting was chosen on. All methods train all weights of the same small
attacker with the same learning rate and a short warm-up; everything else is that of their presets.
The same command resumes an interrupted league.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from common import save

from astra_rl.actions.league import run_league
from astra_rl.bench import PlantedGame, save_planted_attacker
from astra_rl.bench.parts import HELD_OUT, REPORTED, START
from astra_rl.config.league import load_league

GAME = {"modes": 50, "seed": 1000}
TRAINING = {"lr": 1.0e-3, "warmup_steps": 5}
NOT_TRAINED = {"algorithm": {"type": "astra_rl.bench:NoTraining"}}
MUTATION = {"environment": {"type": "mutation", "tree_width": 8}}
KNOWN_KINDS = {
    "novel_failure": {
        "novelty_share": 1.0,
        "nll_weight": 0.0,
        "novelty": {"kind_novelty": {"similarity": 0.6}},
    }
}


def grpo(kl: float) -> dict[str, Any]:
    """Return GRPO with the options of the demo preset."""
    options = {"scale": "batch", "reduce": "token", "clip_high": 0.28, "kl_in_reward": kl}
    return {"type": "grpo", "options": options}


METHODS: dict[str, dict[str, Any]] = {
    "untrained": NOT_TRAINED,
    "mutation": {**NOT_TRAINED, **MUTATION},
    "expert iteration, mutation": {
        **MUTATION,
        "algorithm": {
            "type": "expert_iteration",
            "options": {
                "best": 8,
                "min_reward": 0.3,
                "replay_share": 0.8,
                "replay_similarity": 1.0,
                "rehearse": 64,
                "untrained_share": 0.8,
            },
        },
        "reward": KNOWN_KINDS,
        "training": {"adam_epsilon": 1.0e-3},
    },
    "PAIR (prompted)": {
        **NOT_TRAINED,
        "environment": {"type": "tap", "tree_width": 1, "tree_depth": 3},
    },
    "TAP (prompted)": {
        **NOT_TRAINED,
        "environment": {"type": "tap", "tree_width": 4, "tree_depth": 4, "options": {"keep": 4}},
        "training": {"episodes_per_step": 2},
    },
    "Crescendo (prompted)": {
        **NOT_TRAINED,
        "environment": {"type": "crescendo", "tree_depth": 3, "options": {"backtracks": 1}},
    },
    "GOAT (prompted)": {**NOT_TRAINED, "environment": {"type": "goat", "tree_depth": 3}},
    "Rainbow (prompted)": {**NOT_TRAINED, "environment": {"type": "archive", "tree_width": 8}},
    "best of 8 (prompted)": {**NOT_TRAINED, "environment": {"type": "best_of_n", "tree_width": 8}},
    "few-shot (prompted)": {**NOT_TRAINED, "environment": {"type": "few_shot", "tree_width": 8}},
    "grpo": {"algorithm": grpo(0.03)},
    "grpo, known kinds pay less": {
        "algorithm": grpo(0.01),
        "reward": KNOWN_KINDS,
        "training": {"lr": 3.0e-3},
    },
    "crt": {"preset": "crt", "training": {**TRAINING, "episodes_per_step": 64}},
    "diverct": {"preset": "diverct", "training": {**TRAINING, "episodes_per_step": 64}},
    "gflownet": {"preset": "gflownet", "training": TRAINING},
    "stable_gfn": {"preset": "stable_gfn", "training": TRAINING},
    "astprompter": {"preset": "astprompter", "training": {**TRAINING, "episodes_per_step": 4}},
    "rlhammer": {"preset": "rlhammer", "training": {**TRAINING, "episodes_per_step": 2}},
}


def settings(folder: Path, calls: int, seeds: list[int]) -> dict[str, Any]:
    """Return the configuration of the league."""
    return {
        "run": {
            "attacker": {"model": str(folder / "attacker"), "max_new_tokens": 4},
            "target": {"type": "astra_rl.bench:PlantedTarget", "options": GAME},
            "moderator": {"type": "keyword", "options": {"words": [REPORTED]}},
            "prompts": {
                "file": str(folder / "train.txt"),
                "test_file": str(folder / "test.txt"),
                "role": "opening",
            },
            "dtype": "float32",
            "reward": "harm",
            "environment": {"type": "single_turn", "tree_width": 8},
            "training": {**TRAINING, "episodes_per_step": 8, "batch_size": 64},
            "evaluation": {"before": False, "trials": 128, "watch": 0},
        },
        "calls": calls,
        "seeds": seeds,
        "methods": METHODS,
    }


def main() -> None:
    """Run the league, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=4096)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("leagues/planted"))
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    if not (chosen.output / "attacker").exists():
        save_planted_attacker(PlantedGame(**GAME), chosen.output / "attacker")
    for name, opening in (("train", START), ("test", HELD_OUT)):
        (chosen.output / f"{name}.txt").write_text(f"{opening}\n", encoding="utf-8")
    file = chosen.output / "settings.yaml"
    values = settings(chosen.output, chosen.calls, chosen.seeds)
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def on_cell(method: str, seed: int, run: object) -> None:
        print(method, seed, flush=True)

    league = run_league(load_league(file), chosen.output / "runs", on_cell=on_cell)
    print((chosen.output / "runs" / "league.md").read_text(encoding="utf-8"))
    save("discovery_league", [], **league.as_dict())


if __name__ == "__main__":
    main()
