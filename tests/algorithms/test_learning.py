"""Each algorithm learns the toy game, and the same from the same seed."""

import pytest
import torch

from astra_rl import DPO, GRPO, IPO, Trainer, TrainingConfiguration
from astra_rl.core.contracts import mean_of_present
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem

MAKERS = {
    "dpo": DPO,
    "ipo": IPO,
    "grpo": GRPO,
    "grpo_with_kl": lambda problem: GRPO(problem, kl_in_reward=0.05, kl_in_loss=0.01),
}


def trainer_of(make, *, width=3, seed=0, steps=60, lr=0.1, **settings):
    problem = ToyProblem()
    config = TrainingConfiguration(
        lr=lr,
        batch_size=8,
        optimizer="adam",
        training_steps=steps,
        num_episodes_per_experience=8,
        seed=seed,
        **settings,
    )
    environment = ASTEnvironment(problem, ["one", "two"], tree_width=width, tree_depth=2)
    return Trainer(config, environment, make(problem))


def mean_reward(trainer):
    graphs = trainer.environment.rollouts(range(1000, 1100))
    return mean_of_present(node.reward for graph in graphs for node in graph.nodes())


@pytest.mark.parametrize("name", MAKERS)
def test_it_learns(name):
    trainer = trainer_of(MAKERS[name])
    assert mean_reward(trainer) < 0.4
    trainer.train()
    assert mean_reward(trainer) > 0.8


def test_grpo_learns_without_siblings_from_a_running_average():
    trainer = trainer_of(GRPO, width=1, steps=100)
    assert mean_reward(trainer) < 0.4
    trainer.train()
    assert mean_reward(trainer) > 0.8


def test_pairs_need_siblings_so_dpo_learns_nothing_without_them():
    trainer = trainer_of(DPO, width=1, steps=3)
    before = trainer.algorithm.problem.attacker.detach().clone()
    trainer.train()
    assert torch.equal(trainer.algorithm.problem.attacker, before)


def weights_after_three_steps(name, seed):
    trainer = trainer_of(MAKERS[name], steps=3, seed=seed, gradient_accumulation_steps=2)
    trainer.train()
    return trainer.algorithm.problem.attacker.detach()


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_exactly_the_same_weights_and_another_seed_others(name):
    first = weights_after_three_steps(name, 0)
    torch.rand(7)  # the state of the global generator must not matter
    assert torch.equal(first, weights_after_three_steps(name, 0))
    assert not torch.equal(first, weights_after_three_steps(name, 1))
