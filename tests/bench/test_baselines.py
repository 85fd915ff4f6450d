"""Baselines that learn nothing."""

from __future__ import annotations

import math

import pytest

from astra_rl import Environment, Graph, Node, Trainer, TrainingConfiguration
from astra_rl.bench import NoTraining
from astra_rl.core.text import NotAsked
from astra_rl.errors import UnscoredError
from astra_rl.testing import ToyProblem


class Answered(Environment):
    """Each episode is one turn without a reward."""

    response = "r"

    def rollout(self, seed=None):
        return Graph("c", [Node("c", "a", self.response, math.nan)])


class Unsent(Answered):
    """The attacker writes no attack."""

    response = NotAsked()


def played(environment):
    problem = ToyProblem()
    config = TrainingConfiguration(training_steps=4, max_unscored_steps=2, seed=0)
    trainer = Trainer(config, environment(problem), NoTraining(problem))
    trainer.train()
    return trainer.completed_steps


def test_a_baseline_goes_on_while_its_attacker_writes_no_attack():
    assert played(Unsent) == 4


def test_a_baseline_whose_responses_get_no_score_ends_before_it_spends_all_calls():
    with pytest.raises(UnscoredError, match="in 2 consecutive training steps, up to step 2"):
        played(Answered)
