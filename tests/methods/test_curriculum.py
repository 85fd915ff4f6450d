"""Curricula: which prompts are drawn, and that a resumed training draws the same."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from astra_rl import (
    GRPO,
    ASTEnvironment,
    ConfigurationError,
    Graph,
    Node,
    Trainer,
    TrainingConfiguration,
)
from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import resolve
from astra_rl.methods.curriculum import Curriculum, LearningProgress, UpperConfidence
from astra_rl.testing import ToyProblem
from astra_rl.training.states import load_state, save_state

KINDS = [UpperConfidence, LearningProgress]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_were_never_drawn_come_first(kind: Any) -> None:
    curriculum: Curriculum = kind()
    assert curriculum.probabilities(4) == [0.25] * 4
    curriculum.observe({1: [1.0], 2: []})
    assert curriculum.probabilities(4) == [0.5, 0, 0, 0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_whose_rewards_are_all_missing_does_not_hold_the_others_up(kind: Any) -> None:
    curriculum: Curriculum = kind()
    for _ in range(3):
        curriculum.observe({0: [], 1: [0.0, 1.0], 2: [1.0]})
    probabilities = curriculum.probabilities(3)
    assert 0 < probabilities[0] < 1
    assert sum(probabilities) == pytest.approx(1)
    saved = json.loads(json.dumps(curriculum.state_dict()))
    again = kind()
    again.load_state_dict(saved)
    assert again.probabilities(3) == probabilities


def test_upper_confidence_bounds_by_hand() -> None:
    """Rewards 1 and 0 of one prompt, 1 of another: mean 2/3, deviation sqrt(2/9)."""
    curriculum = UpperConfidence(2.0, temperature=0.5, decay=1.0)
    curriculum.observe({0: [1.0, 0.0], 1: [1.0]})
    deviation, width = math.sqrt(2 / 9), math.sqrt(2 * math.log(3))
    bounds = [0.5 / deviation + 2 * width / math.sqrt(2), 1 / deviation + 2 * width]
    assert curriculum.bounds(2) == pytest.approx(bounds)
    low, high = (math.exp(bound / 0.5) for bound in bounds)
    assert curriculum.probabilities(2) == pytest.approx([low / (low + high), high / (low + high)])


def test_earlier_experiences_are_discounted() -> None:
    curriculum = UpperConfidence(0.0, decay=0.5)
    curriculum.observe({0: [1.0], 1: [0.0]})
    curriculum.observe({0: [0.0], 1: [0.0]})
    curriculum.observe({0: [0.0], 1: [1.0]})
    assert curriculum.state_dict() == {"moments": [[0, 1.75, 0.25, 0.25], [1, 1.75, 1.0, 1.0]]}
    assert curriculum.probabilities(2)[1] > 0.8


def test_learning_progress_by_hand() -> None:
    """Averages of 0 then 1, decays 0.5 and 0.9: 0.5 and 0.1; the other prompt does not change."""
    curriculum = LearningProgress(0.2, fast=0.5, slow=0.9)
    curriculum.observe({0: [0.0], 1: [0.5]})
    assert curriculum.probabilities(2) == [0.5, 0.5]
    curriculum.observe({0: [1.0], 1: [0.5, 0.5]})
    assert curriculum.state_dict() == {"averages": [[0, 0.5, pytest.approx(0.1)], [1, 0.5, 0.5]]}
    assert curriculum.probabilities(2) == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(("kind", "best"), [(UpperConfidence, 3), (LearningProgress, 2)])
def test_the_right_prompt_is_drawn_most(kind: Any, best: int) -> None:
    """Prompts that earn 0.1, 0.5, from 0 to 0.6, and 0.9."""
    curriculum: Curriculum = kind()
    random, drawn = Random(0), Counter[int]()
    for step in range(120):
        weights = curriculum.probabilities(4)
        rewards: dict[int, list[float]] = {}
        for index in random.choices(range(4), weights, k=8):
            mean = [0.1, 0.5, step / 200, 0.9][index]
            rewards.setdefault(index, []).append(float(random.random() < mean))
            drawn[index] += step >= 40
        curriculum.observe(rewards)
    if kind is UpperConfidence:
        assert drawn.most_common(1)[0][0] == best
    assert min(drawn.values()) > 0


def test_an_environment_draws_by_it_in_training_only_and_counts_duplicates_once() -> None:
    class Last(UpperConfidence):
        def probabilities(self, count: int) -> list[float]:
            assert count == 3
            return [0.0, 0.0, 1.0]

    environment = ASTEnvironment(ToyProblem(), ["a", "b", "a", "c"], tree_width=1, tree_depth=1)
    usual = [graph.context for graph in environment.rollouts(range(20))]
    environment.curriculum = Last()
    assert {str(graph.context) for graph in environment.rollouts(range(20))} == {"c"}
    assert [graph.context for graph in environment.eval_rollouts(range(20))] == usual


def test_what_is_observed_is_the_mean_reward_of_each_episode() -> None:
    class Noting(UpperConfidence):
        def observe(self, rewards: Any) -> None:
            self.seen = dict(rewards)

    def episode(context: str, *rewards: float) -> Graph[str, str]:
        return Graph(context, [Node(context, "x", "y", reward) for reward in rewards])

    environment = ASTEnvironment(ToyProblem(), ["a", "b"])
    environment.curriculum = noting = Noting()
    episodes = [
        episode("b", 1.0, 0.0),
        episode("a", math.nan),
        episode("b", 1.0, math.nan),
        episode("elsewhere", 1.0),
    ]
    environment.observe(episodes)
    assert noting.seen == {1: [0.5, 1.0], 0: []}


def trainer_of(kind: Any, steps: int, played: list[str]) -> Trainer[Any, Any, Any, Any]:
    class Noting(ASTEnvironment):
        def observe(self, graphs: Sequence[Graph[str, str]]) -> None:
            played.extend(str(graph.context) for graph in graphs)
            super().observe(graphs)

    problem = ToyProblem()
    environment = Noting(problem, ["a", "b", "c", "d"], tree_width=2, tree_depth=1)
    environment.curriculum = kind()
    config = TrainingConfiguration(
        lr=0.1, training_steps=steps, num_episodes_per_experience=4, seed=1
    )
    return Trainer(config, environment, GRPO(problem))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_draws_the_same_prompts(kind: Any, tmp_path: Path) -> None:
    whole: list[str] = []
    first: list[str] = []
    trainer_of(kind, 8, whole).train()
    begun = trainer_of(kind, 5, first)
    begun.train()
    save_state(tmp_path, 5, begun.state_dict())
    found = load_state(tmp_path)
    assert found is not None
    resumed = trainer_of(kind, 8, first)
    resumed.load_state_dict(found[1])
    resumed.train()
    assert first == whole


CONFIG = (
    "{attacker: {model: a}, target: {model: t}, moderator: {type: refusal}, "
    "prompts: {scenario: planted_secrets}, environment: {curriculum: %s}}"
)


def test_the_yaml_names_one() -> None:
    text = CONFIG % "{type: upper_confidence, options: {exploration: 0.5}}"
    plan = resolve(parse_config(text, source="x"))
    assert isinstance(plan.curriculum, UpperConfidence)
    assert plan.curriculum.exploration == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{type: upper_confidense}", "Did you mean 'upper_confidence'"),
        ("{type: upper_confidence, options: {exploration: -1}}", r"curriculum.*exploration=-1"),
        ("{type: learning_progress, options: {fast: 0.9, slow: 0.5}}", "fast below slow"),
        ("{type: learning_progress, options: {uniform: 0}}", "uniform=0"),
        ("{type: upper_confidence, options: {decay: 2}}", "decay=2"),
        ("{type: upper_confidence, options: {temperature: 0}}", "temperature=0"),
        ("{type: upper_confidence, options: {speed: 2}}", "unknown key"),
        ("{type: 'astra_rl.testing:ToyProblem'}", "subclass of Curriculum"),
    ],
)
def test_a_wrong_one_is_named(given: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(parse_config(CONFIG % given, source="x"))
