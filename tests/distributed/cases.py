"""Trainings that are run in one process and in several."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from astra_rl import GRPO, Trainer, TrainingConfiguration
from astra_rl.algorithms import ALGORITHMS
from astra_rl.core.seeding import current_row_seeds
from astra_rl.distributed.ranks import join
from astra_rl.errors import ReplicaError
from astra_rl.ext.transformers import (
    HFASTConfiguration,
    HFASTProblem,
    HFASTTrainer,
    HFValueProblem,
)
from astra_rl.methods import ASTEnvironment
from astra_rl.models.loading import load_model
from astra_rl.models.trainable import LoraOptions
from astra_rl.rewards import Harm, WeightedSum
from astra_rl.targets.base import Target
from astra_rl.testing import ScriptedModerator, ToyProblem, letter_game, tiny_model
from astra_rl.training.callbacks import TrainerCallback
from astra_rl.training.config import OPTIMIZERS
from astra_rl.training.precision import MasterWeightOptimizer
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


def trainer(
    name: str,
    *,
    lora: bool = False,
    depth: int = 1,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Recording:
    """Return a trainer of an algorithm on the letter game."""
    options = OPTIONS.get(name, {})
    count = ALGORITHMS[name].values_needed(**options)
    given: dict[str, Any] = {"kind": HFValueProblem, "value_count": count} if count else {}
    if lora:
        given["lora"] = LoraOptions(rank=2)
    torch.manual_seed(0)
    environment = letter_game(depth=depth, **given)
    environment.problem.attacker.to(dtype)  # type: ignore[attr-defined]
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


def whole(tensor: Any) -> list[float]:
    """Return the numbers of a tensor of all processes."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().double().flatten().tolist()  # type: ignore[no-any-return]


def first_gradient(name: str, **options: Any) -> list[float | None]:
    """Return the first gradient that is not zero, before clipping; None for a parameter without."""
    found: list[float | None] = []

    class Kept(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            if not any(found):
                found.clear()
                for each in self.param_groups[0]["params"]:
                    found.extend([None] if each.grad is None else whole(each.grad))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPTIMIZERS, "kept", Kept)  # type: ignore[arg-type]
        options = {"optimizer": "kept", "max_grad_norm": None, "training_steps": 1, **options}
        trainer(name, **options).train()
    return found


def gradient_difference(ours: list[float | None], theirs: list[float | None]) -> float:
    """Return the largest difference of two gradients, in parts of the largest number."""
    assert [each is None for each in ours] == [each is None for each in theirs]
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)


def spoiled(what: str, rank: int, **options: Any) -> dict[str, Any]:
    """Train with a loss that, in one process, at one call, is NaN or runs out of memory."""
    trained = trainer("grpo", **options)
    step, calls = trained.algorithm.step, itertools.count()

    def once(batch: Any) -> Any:
        loss, logs = step(batch)
        if join().rank == rank and next(calls) == 0:
            if what == "out of memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss * math.nan, logs
        return loss, logs

    trained.algorithm.step = once  # type: ignore[method-assign]
    trained.train()
    return outcome(trained)


def half_precision(**options: Any) -> dict[str, Any]:
    """Train bfloat16 weights with float32 masters."""
    trained = trainer("grpo", dtype=torch.bfloat16, **options)
    trained.train()
    assert isinstance(trained.optimizer, MasterWeightOptimizer)
    return {**outcome(trained), "masters": digest(trained.optimizer.masters)}


def diverging(**options: Any) -> str:
    """Train with a callback that changes the learning rate in the first process only."""
    trained = trainer("grpo", training_steps=4, **options)

    class Faster(TrainerCallback):
        def on_step_begin(self, trainer: Any, step: int) -> None:
            trainer.optimizer.param_groups[0]["lr"] = 0.5 if step == 2 else 5e-3

    trained.callbacks.append(Faster())
    try:
        trained.train()
    except ReplicaError as error:
        return str(error)
    return ""


def random_start() -> str:
    """Train from random weights of this process."""
    torch.manual_seed(join().rank)
    environment = ASTEnvironment(ToyProblem(seed=join().rank), ["say: "], tree_width=4)
    config = TrainingConfiguration(lr=0.1, training_steps=1, num_episodes_per_experience=3)
    Trainer(config, environment, GRPO(environment.problem)).train()
    return digest(list(environment.problem.parameters()))


def saved(folder: str) -> dict[str, Any]:
    """Train with `HFASTTrainer`; return its scores, and the weights that it saved."""
    torch.manual_seed(0)
    environment = letter_game()
    config = HFASTConfiguration(lr=5e-3, batch_size=8, training_steps=2, seed=3, shards=4)
    algorithm = GRPO(environment.problem)
    trained = HFASTTrainer(
        config, environment, algorithm, dev_prompts=["hey: "], eval_every=1, ckpt_dir=folder
    )
    trained.train()
    problem: Any = environment.problem
    found = {"weights": digest([p for p in problem.attacker.parameters() if p.requires_grad])}
    if not trained.ranks.is_first:
        return found
    loaded = load_model(Path(folder) / "last", device="cpu", dtype="float32")
    prompt = torch.arange(4, 12)[None]
    with torch.no_grad():
        difference = (loaded(prompt).logits - problem.attacker(prompt).logits).abs().max()
    return {**found, "difference": float(difference), "best": trained.best_score}


class Own(Target):
    """A target of the user's own, which counts its calls in this process."""

    name = "own"
    calls = 0

    def respond(self, conversations: Sequence[str]) -> Sequence[str]:
        """Return a reply per conversation, drawn by the seed of its row."""
        Own.calls += 1
        return [f"{seed % 97}" for seed in current_row_seeds(len(conversations))]


def own_target() -> tuple[int, list[str]]:
    """Train against a target of the user's own; return its calls here, and its replies."""
    Own.calls = 0
    torch.manual_seed(0)
    model = tiny_model("llama")
    reward = WeightedSum({Harm("response"): 1.0})
    problem = HFASTProblem(model, Own(), model, ScriptedModerator({"1": 1.0}), reward=reward)
    environment = ASTEnvironment(problem, ["ask: ", "say: "], tree_width=2, tree_depth=2)
    config = TrainingConfiguration(
        training_steps=2, num_episodes_per_experience=4, seed=1, shards=2
    )
    trained = Recording(config, environment, GRPO(problem))
    trained.train()
    return Own.calls, [str(n.response) for g in trained.harness.graphs for n in g.nodes()]
