"""A game that a tiny transformer learns in a second, and how an algorithm fares at it."""

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
    """How an algorithm fared, one entry per training step.

    Attributes:
        rewards: Mean reward of the episodes that the step collected.
        losses: Mean loss of the step's batches; NaN where it had none.
    """

    rewards: list[float]
    losses: list[float]


def letter_game(*, depth: int = 1, **options: Any) -> ASTEnvironment:
    """Make a language game that a tiny transformer learns in a second, without a download.

    The attacker says up to four letters, and its reward is the share of them that are x or y: less
    than 0.1 for an untrained attacker, 1 for a perfect one. Attacker and target are models of
    `tiny_model`; episodes have four siblings per turn.

    Args:
        depth: Turns of an episode.
        options: Of the problem; ``kind`` is its class, `HFASTProblem` unless given.
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
            "attacker_sampling": Sampling(max_new_tokens=_LetterModerator.most),
            "target_sampling": Sampling(max_new_tokens=1),
            **options,
        },
    )
    return ASTEnvironment(problem, ["ask: ", "say: "], tree_width=4, tree_depth=depth)


class _LetterModerator(Moderator[str, str]):
    letters, most = "xy", 4

    def moderate(self, x: Sequence[str]) -> Sequence[float]:
        attacks = [str(each.attack if isinstance(each, Exchange) else each) for each in x]
        return [sum(map(attack.count, self.letters)) / self.most for attack in attacks]


def learn(
    make: Callable[[Any], Algorithm[Any, Any, Any, Any]],
    environment: Environment[Any, Any] | None = None,
    *,
    steps: int = 60,
    lr: float = 5e-3,
    seed: int = 0,
    **settings: Any,
) -> LearningCurve:
    """Train from scratch and return how it went: the same for the same arguments.

    Args:
        make: Builds the algorithm for a problem, for instance its class.
        environment: What is played; None is a new `letter_game()`. Its problem is trained.
        steps: Training steps of 16 episodes.
        lr: Learning rate of Adam.
        seed: Of the episodes and the order of batches.
        settings: Other fields of `TrainingConfiguration`.
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
