"""The dry run counts what is played: sizes of a plan against what its classes do on a toy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from astra_rl import Trainer, TrainingConfiguration
from astra_rl.config.estimate import TrainingSize, estimate, training_size
from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import Plan, resolve
from astra_rl.testing import ScriptedModerator, ToyProblem

STEPS, EPISODES, BATCH = 2, 3, 4


class Counting(ToyProblem):
    """Counts what is sampled and sent; only `boom` tells attacks apart."""

    def __init__(self, score: float) -> None:
        super().__init__(moderator=ScriptedModerator({"boom": score}))
        self.sampled = self.sent = 0

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[str]:
        self.sampled += len(contexts)
        return super().rollout_prompt_with_attacker(contexts)

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        self.sent += len(contexts)
        return super().rollout_prompt_with_target(contexts)


def planned(tmp_path: Path, algorithm: dict[str, Any], environment: dict[str, Any]) -> Plan:
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "attacks.txt").write_text(" boom calm\n tree rain\n")
    config = {
        "attacker": {"model": "an-attacker"},
        "target": {"type": "openai", "options": {"model": "m", "base_url": "http://127.0.0.1:9"}},
        "moderator": {"type": "keyword", "options": {"patterns": ["a"]}},
        "prompts": {"file": str(tmp_path / "prompts.txt")},
        "training": {"steps": STEPS, "episodes_per_step": EPISODES, "batch_size": BATCH},
        "algorithm": algorithm,
        "environment": environment,
    }
    return resolve(parse_config(yaml.safe_dump(config), source="a test"))


def played(plan: Plan, score: float) -> tuple[Counting, int]:
    """The toy after the training of the plan, and the number of updates."""
    problem = Counting(score)
    environment = plan.environment.factory(problem, ["one", "two"], **plan.environment.options)
    algorithm = plan.algorithm.factory(problem, **plan.algorithm.options)
    config = TrainingConfiguration(
        training_steps=STEPS, num_episodes_per_experience=EPISODES, batch_size=BATCH, seed=0
    )
    trainer = Trainer(config, environment, algorithm)
    updates = []
    trainer.optimizer.register_step_post_hook(lambda *_: updates.append(1))
    trainer.train()
    return problem, len(updates)


def training_calls(plan: Plan) -> int:
    """Calls of the target of a training alone, as estimated."""
    (whole,), (evaluation,) = estimate(plan), estimate(plan, training=False)
    before = evaluation.requests if plan.evaluation.before else 0
    return whole.requests - evaluation.requests - before


@pytest.mark.parametrize("score", [1.0, 0.0], ids=["some succeed", "none does"])
def test_dapo_plays_episodes_without_a_signal_again(score: float, tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        {"type": "dapo", "options": {"refill_rounds": 2}},
        {"type": "single_turn", "tree_width": 4},
    )
    size = training_size(plan)
    assert size == TrainingSize(episodes=18, attempts=72, replies=72, updates=6)
    assert training_calls(plan) == 72
    problem, updates = played(plan, score)
    assert (problem.sampled == problem.sent == 72) == (score == 0)  # all rounds, in each step
    assert problem.sent <= 72
    assert 0 < updates <= size.updates if score else updates == 0


def test_a_warm_start_plays_nothing(tmp_path: Path) -> None:
    attacks = str(tmp_path / "attacks.txt")
    plan = planned(
        tmp_path,
        {"type": "warm_start", "options": {"attacks": attacks}},
        {"type": "tree", "tree_width": 4, "tree_depth": 2},
    )
    assert training_size(plan) == TrainingSize(episodes=0, attempts=0, replies=0, updates=2)
    assert training_calls(plan) == 0
    problem, updates = played(plan, 1.0)
    assert (problem.sampled, problem.sent, updates) == (0, 0, 2)


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_self_play_trains_answers_too_and_never_calls_the_target(name: str, tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        {"type": name},
        {"type": "self_play", "tree_width": 2, "options": {"replies": 3}},
    )
    size = training_size(plan)
    assert (size.episodes, size.attempts, size.replies) == (6, 12, 36)
    assert training_calls(plan) == 0
    problem, updates = played(plan, 1.0)
    assert (problem.sampled, problem.sent) == (12 + 36, 0)
    # 8 attacks and answers of each of 3 episodes make 6 batches of 4.
    assert updates == size.updates == 12 if name == "grpo" else updates <= size.updates
