"""Toy language task for tiny transformers, and learning curves of algorithms on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.environment import Environment
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Exchange
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.rewards.base import WeightedSum
from astra_rl.rewards.terms import Harm
from astra_rl.testing.models import tiny_model
from astra_rl.training.config import TrainingConfiguration
from astra_rl.training.trainer import Trainer


class LearningCurve(NamedTuple):
    """Rewards and losses of a training, one entry per training step.

    Attributes:
        rewards: Mean reward of the episodes collected in the step.
        losses: Mean loss of the step's batches; NaN if there were none.
    """

    rewards: list[float]
    losses: list[float]


def letter_game(*, depth: int = 1, **options: Any) -> ASTEnvironment:
    """Return a toy environment that a tiny transformer solves in about a second of training.

    The attacker generates up to four letters. Its reward is the number of letters x and y divided
    by 4: below 0.1 for an untrained attacker, 1 for an optimal one. Attacker and target are made by
    `tiny_model`; episodes have four attacks per context.

    Args:
        depth: Number of turns per episode.
        options: Options of the problem. ``kind`` is its class, by default `HFASTProblem`.
    """
    from astra_rl.ext.transformers import HFASTProblem
    from astra_rl.models.generation import Sampling

    kind = options.pop("kind", HFASTProblem)
    attacker = tiny_model("llama")
    problem = kind(
        attacker,
        tiny_model("gpt2", seed=1),
        attacker,
        _LetterModerator(),
        **{
            "reward": WeightedSum({Harm("response"): 1.0}),
            "attacker_sampling": Sampling(max_new_tokens=_LetterModerator.max_letters),
            "target_sampling": Sampling(max_new_tokens=1),
            **options,
        },
    )
    return ASTEnvironment(problem, ["ask: ", "say: "], tree_width=4, tree_depth=depth)


class _LetterModerator(Moderator[str, str]):
    letters, max_letters = "xy", 4

    def moderate(self, x: Sequence[str]) -> Sequence[float]:
        attacks = [each.attack if isinstance(each, Exchange) else str(each) for each in x]
        return [sum(map(attack.count, self.letters)) / self.max_letters for attack in attacks]


def learn(
    make: Callable[[Any], Algorithm[Any, Any, Any, Any]],
    environment: Environment[Any, Any] | None = None,
    *,
    steps: int = 60,
    lr: float = 5e-3,
    seed: int = 0,
    **settings: Any,
) -> LearningCurve:
    """Train an algorithm from scratch and return its learning curve; deterministic.

    Args:
        make: Builds the algorithm for a problem, for example the algorithm's class.
        environment: Environment whose problem is trained; None is a new `letter_game()`.
        steps: Number of training steps, with 16 episodes each.
        lr: Learning rate of Adam.
        seed: Seed of the episodes and of the batch order.
        settings: Further fields of `TrainingConfiguration`.
    """
    environment = letter_game() if environment is None else environment
    curve = LearningCurve([], [])

    class Recording(Trainer[Any, Any, Any, Any]):
        def on_step_end(self, step: int, logs: dict[str, float]) -> None:
            curve.rewards.append(self.harness.experience_metrics()["reward"])
            curve.losses.append(logs.get("loss", math.nan))

    config = TrainingConfiguration(
        **{
            "lr": lr,
            "optimizer": "adam",
            "batch_size": 32,
            "training_steps": steps,
            "num_episodes_per_experience": 16,
            "seed": seed,
            **settings,
        }
    )
    Recording(config, environment, make(environment.problem)).train()
    return curve
