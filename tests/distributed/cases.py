"""Trainings that are run in one process and in several."""

from __future__ import annotations

from typing import Any

import torch

from astra_rl import Trainer, TrainingConfiguration
from astra_rl.algorithms import ALGORITHMS
from astra_rl.ext.transformers import HFValueProblem
from astra_rl.models.trainable import LoraOptions
from astra_rl.testing import letter_game
from astra_rl.training.replicas import digest

OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"kl_in_reward": 0.1, "kl_target": 0.5, "epochs": 2},
    "gspo": {"kl_in_loss": 0.1},
    "ppo": {"epochs": 2, "kl_in_reward": 0.05},
    "ppo_lagrangian": {"constraints": {"harm_response": {"at_least": 0.9}}, "epochs": 2},
    "kto": {"threshold": None},
    "warm_start": {"attacks": ["xyxy", "yyx", "xx"]},
}
NAMES = tuple(ALGORITHMS)


class Recording(Trainer[Any, Any, Any, Any]):
    """Keeps the log of every step."""

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self.logs: list[dict[str, float]] = []

    def on_step_end(self, step: int, logs: dict[str, float]) -> None:
        super().on_step_end(step, logs)
        self.logs.append({**self.harness.experience_metrics(), **logs})


def trainer(name: str, *, lora: bool = False, depth: int = 1, **settings: Any) -> Recording:
    """Return a trainer of an algorithm on the letter game."""
    options = OPTIONS.get(name, {})
    count = ALGORITHMS[name].values_needed(**options)
    given: dict[str, Any] = {"kind": HFValueProblem, "value_count": count} if count else {}
    if lora:
        given["lora"] = LoraOptions(rank=2)
    torch.manual_seed(0)
    environment = letter_game(depth=depth, **given)
    config = TrainingConfiguration(
        **{
            "lr": 5e-3,
            "batch_size": 8,
            "training_steps": 2,
            "num_episodes_per_experience": 5,
            "seed": 3,
            "shards": 4,
            **settings,
        }
    )
    return Recording(config, environment, ALGORITHMS[name](environment.problem, **options))


def outcome(trained: Recording) -> dict[str, Any]:
    """Return what must not depend on the number of processes."""
    problem = trained.algorithm.problem
    logs = [{k: v for k, v in row.items() if k != "step_time"} for row in trained.logs]
    return {
        "weights": digest([p for p in problem.parameters() if p.requires_grad]),
        "algorithm": digest(trained.algorithm.state_dict()),
        "logs": repr(logs),
        "attacks": [str(node.attack) for graph in trained.harness.graphs for node in graph.nodes()],
    }


def train(name: str, **options: Any) -> dict[str, Any]:
    """Train, and return the outcome."""
    trained = trainer(name, **options)
    trained.train()
    return outcome(trained)
