"""REINFORCE with a running average, and REINFORCE++."""

import math

import pytest
import torch

from astra_rl import REINFORCE, Graph, ReinforcePlusPlus, ReinforcePlusPlusBaseline
from astra_rl.testing import ToyProblem

nan = math.nan


def test_reinforce_compares_with_the_average_of_all_before(siblings, advantages):
    """decay 0.5: 0 and 4 against their own mean 2, which stays; then 6 against 2."""
    algorithm = REINFORCE(ToyProblem(), baseline_decay=0.5)
    assert advantages(algorithm, siblings(0.0, 4.0)) == [-2.0, 2.0]
    assert advantages(algorithm, siblings(6.0)) == [4.0]
    twin = REINFORCE(ToyProblem(), baseline_decay=0.5)
    twin.load_state_dict(algorithm.state_dict())
    assert advantages(twin, siblings(6.0)) == [2.0]  # the average is (2 + 6) / 2


def test_reinforce_credits_turns_as_asked(node, advantages):
    graph = Graph("c", [node(" boom", 1.0, node(" calm", 3.0, context="c boom"))])
    found = advantages(REINFORCE(ToyProblem(), credit="return_to_go"), graph)
    assert found == [0.5, -0.5]  # 4 and 3 against 3.5


def test_the_loss_of_reinforce_is_the_log_probability_of_whole_attacks(step_like):
    """Sums over tokens, mean over attacks: -(2 * log pi(a) - log pi(b)) / 2."""
    algorithm = REINFORCE(ToyProblem())
    steps = [step_like(" boom boom", 2.0), step_like(" calm", -1.0)]
    first, second = (sum(step.old_logprobs) for step in steps)
    loss, logs = algorithm.step(algorithm.collate_fn(steps))
    assert loss.item() == pytest.approx(-(2 * first - second) / 2, rel=1e-5)
    assert "ratio/mean" not in logs


def test_reinforce_plus_plus_normalises_over_all_tokens(node, prepared):
    """Returns 4, 4, 4 (three tokens) and 0: mean 3, deviation sqrt(3)."""
    graphs = [Graph("c", [node(" boom boom boom", 4.0)]), Graph("d", [node(" calm", 0.0)])]
    first, second = prepared(ReinforcePlusPlus(ToyProblem()), *graphs)
    assert first.advantages == pytest.approx([1 / math.sqrt(3)] * 3, rel=1e-3)
    assert second.advantages == pytest.approx([-math.sqrt(3)], rel=1e-3)


def test_each_token_of_reinforce_plus_plus_pays_for_the_divergence_to_come(node, prepared):
    """Gap g at " boom" and h at " calm"; the return of the second token of " boom calm" is
    1 - 0.5 h, that of its first 1 - 0.5 (g + h); another attack, " calm", has 0 - 0.5 h."""
    algorithm = ReinforcePlusPlus(ToyProblem(), kl_in_reward=0.5)
    problem = algorithm.problem
    with torch.no_grad():
        problem.attacker[problem.words.index("boom")] += 1.0
    gap = (problem.attacker.log_softmax(0) - problem.baseline.log_softmax(0)).tolist()
    g, h = (gap[problem.words.index(word)] for word in ("boom", "calm"))
    graph = Graph("c", [node(" boom calm", 1.0), node(" calm", 0.0)])
    returns = [1 - 0.5 * (g + h), 1 - 0.5 * h, -0.5 * h]
    mean = sum(returns) / 3
    deviation = math.sqrt(2) / 3  # of the returns without the penalty: 1, 1, 0
    found = [value for step in prepared(algorithm, graph) for value in step.advantages]
    assert found == pytest.approx([(value - mean) / deviation for value in returns], rel=1e-3)


def test_the_baseline_form_takes_the_mean_of_the_group_first(siblings, advantages):
    """-2, 2 and -0.1, 0.1 of two groups, then divided by their common deviation."""
    algorithm = ReinforcePlusPlusBaseline(ToyProblem())
    found = advantages(algorithm, siblings(0.0, 4.0), siblings(10.0, 10.2, context="d"))
    deviation = math.sqrt((4 + 4 + 0.01 + 0.01) / 4)
    assert found == pytest.approx([value / deviation for value in (-2, 2, -0.1, 0.1)], rel=1e-3)
    assert algorithm.experience_metrics()["frac_reward_zero_std"] == 0


def test_the_average_of_the_baseline_form_survives_a_restart(siblings, advantages):
    algorithm, twin = (ReinforcePlusPlusBaseline(ToyProblem()) for _ in range(2))
    advantages(algorithm, siblings(1.0), siblings(2.0, context="d"))
    twin.load_state_dict(algorithm.state_dict())
    later = [siblings(5.0), siblings(7.0, context="d")]
    assert advantages(twin, *later) == advantages(algorithm, *later)


def test_missing_rewards_do_not_shift_the_others(siblings, advantages):
    for make in (REINFORCE, ReinforcePlusPlus, ReinforcePlusPlusBaseline):
        known = advantages(make(ToyProblem()), siblings(0.0, 4.0))
        assert advantages(make(ToyProblem()), siblings(nan, 0.0, 4.0)) == known
