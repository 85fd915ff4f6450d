"""Each algorithm learns a language game with a tiny model, and the same from the same seed."""

from functools import partial

import pytest
import torch
from tests.cases import also

from astra_rl import DPO, PPOLagrangian, Trainer, TrainingConfiguration
from astra_rl.algorithms import ALGORITHMS
from astra_rl.ext.transformers import HFValueProblem
from astra_rl.methods import ASTEnvironment
from astra_rl.rewards.base import RewardTerm, WeightedSum
from astra_rl.rewards.terms import Harm
from astra_rl.testing import ToyProblem, learn, letter_game

pytestmark = pytest.mark.slow

LEARNERS = [name for name in ALGORITHMS if name != "warm_start"]  # that one plays no episodes
OPTIONS = {
    "a2c": {"alpha": 0.01},
    "contrastive_balance": {"temperature": 0.05},
    "dr_grpo": {"max_tokens": 4},
    "kto": {"threshold": None},
    "ppo_lagrangian": {"constraints": {"harm_response": {"at_least": 0.9}}},
    "trajectory_balance": {"temperature": 0.05},
}
"""What an algorithm needs, or what fits a game of four letters and rewards up to one."""


def play(name, options=None, *, depth=1, **settings):
    options = OPTIONS.get(name, {}) | (options or {})
    kind = ALGORITHMS[name]
    count = kind.values_needed(**options)
    values = {"kind": HFValueProblem, "value_count": count} if count else {}
    return learn(partial(kind, **options), letter_game(depth=depth, **values), **settings)


ONE_OF_EACH_FAMILY = (
    "contrastive_balance",
    "dpo",
    "expert_iteration",
    "grpo",
    "kto",
    "ppo",
    "reinforce",
)


each_family = pytest.mark.parametrize(
    "name", [name if name in ONE_OF_EACH_FAMILY else also(name) for name in LEARNERS]
)


@each_family
def test_it_learns(name):
    # At 5e-3 PPO-Lagrangian overshoots for some seeds and has to learn twice.
    curve = play(name, steps=32, lr=3e-3 if name == "ppo_lagrangian" else 5e-3)
    assert curve.rewards[0] < 0.1
    assert sum(curve.rewards[-5:]) / 5 > 0.8


@pytest.mark.parametrize(
    "name", [name if name in ("grpo", "kto") else also(name) for name in LEARNERS]
)
def test_the_same_seed_gives_the_same_losses_and_another_seed_others(name):
    settings = {"steps": 3, "gradient_accumulation_steps": 2}
    first = play(name, **settings)
    torch.rand(7)  # the state of the global generator must not matter
    assert play(name, **settings) == first
    assert play(name, seed=1, **settings) != first


@pytest.mark.parametrize(
    ("name", "options"),
    [
        also("grpo", {"kl_in_reward": 0.01, "kl_in_loss": 0.001}),
        also("grpo", {"group": "prompt", "credit": "trajectory"}),
        also("rloo", {"credit": "return_to_go", "group": "episode"}),
        also("reinforce++", {"credit": "mean_backup", "epochs": 2}),
        ("gspo", {"credit": "max_backup"}),
        also("cispo", {"credit": "leaf"}),
        also("ppo", {"kl_in_reward": 0.01, "kl_target": 8.0, "kl_horizon": 1000}),
    ],
)
def test_it_learns_conversations_of_two_turns(name, options):
    curve = play(name, options, depth=2, steps=13)
    assert curve.rewards[0] < 0.1
    assert curve.rewards[-1] > 0.8


@pytest.mark.parametrize(
    "name", [also(name) for name in ("grpo", "reinforce", "rloo", "reinforce++_baseline")]
)
def test_it_learns_without_siblings_from_a_running_average(name):
    environment = letter_game()
    environment.tree_width = 1
    curve = learn(ALGORITHMS[name], environment, num_episodes_per_experience=64)
    assert curve.rewards[0] < 0.1
    assert curve.rewards[-1] > 0.8


def test_pairs_need_siblings_so_dpo_learns_nothing_without_them():
    problem = ToyProblem()
    before = problem.attacker.detach().clone()
    environment = ASTEnvironment(problem, ["one"], tree_width=1, tree_depth=2)
    Trainer(TrainingConfiguration(training_steps=3, seed=0), environment, DPO(problem)).train()
    assert torch.equal(problem.attacker, before)


class Vowel(RewardTerm):
    """The share of an attack's letters that are a: what the reward asks for."""

    name = "vowel"

    def __call__(self, models, exchanges):
        return [str(exchange.attack).count("a") / 4 for exchange in exchanges]


@pytest.mark.exhaustive
def test_a_constraint_is_met_where_the_reward_asks_for_something_else():
    """Half of the letters must be x or y, and the reward wants all to be a.

    With a linear reward there is no stopping halfway: the multiplier rises exactly while the bound
    is broken, the attacker goes back and forth, and meets the bound on average.
    """
    environment = letter_game(
        kind=HFValueProblem,
        value_count=2,
        reward=WeightedSum({Vowel(): 1.0, Harm("response"): 0.0}),
    )
    seen = []

    class Watching(Trainer):
        def on_step_end(self, step, logs):
            seen.append(self.harness.experience_metrics())

    config = TrainingConfiguration(
        lr=5e-3,
        optimizer="adam",
        batch_size=32,
        training_steps=45,
        num_episodes_per_experience=16,
        seed=0,
    )
    algorithm = PPOLagrangian(environment.problem, constraints={"harm_response": {"at_least": 0.5}})
    Watching(config, environment, algorithm).train()
    harms, multipliers, vowels = (
        [metrics[name] for metrics in seen]
        for name in (
            "constraint/harm_response/mean",
            "constraint/harm_response/multiplier",
            "rewards/vowel/mean",
        )
    )
    assert harms[0] < 0.1
    for harm, before, after in zip(harms, [1.0, *multipliers], multipliers, strict=False):
        assert (after > before) == (harm < 0.5)
    assert sum(harms[5:]) / 40 == pytest.approx(0.5, abs=0.15)
    assert sum(vowels[5:]) / 40 > 0.25
