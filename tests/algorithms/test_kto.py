"""KTO: attacks that worked against attacks that did not, without pairs."""

import math

import pytest
import torch

from astra_rl import KTO, Graph, Node
from astra_rl.algorithms.kto import KTOStep
from astra_rl.algorithms.losses import kto_loss
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem, check_algorithm, learn

nan = math.nan


def graph(*attacks):
    return Graph("c", [Node("c", attack, "r", reward, []) for attack, reward in attacks])


def trained():
    problem = ToyProblem()
    with torch.no_grad():
        problem.attacker += torch.linspace(-1, 1, 6)
    return problem


def prepared(algorithm, *attacks):
    return list(algorithm.prepare(algorithm.flatten(graph(*attacks))))


def test_the_loss_is_that_of_plain_python_on_the_table_of_logits():
    problem = trained()
    algorithm = KTO(problem, beta=0.3, desirable_weight=2.0)
    attacks = [(" boom calm", 1.0), (" tree", 0.0), (" rain rain", 0.2)]
    policy, reference = (
        dict(zip(problem.words, table.log_softmax(0).tolist(), strict=True))
        for table in (problem.attacker, problem.baseline)
    )
    ratios = [sum(policy[w] - reference[w] for w in text.split()) for text, _ in attacks]
    divergence = max(0.0, sum(ratios) / 3)
    losses = [
        weight * (1 - 1 / (1 + math.exp(-0.3 * sign * (ratio - divergence))))
        for ratio, sign, weight in zip(ratios, (1, -1, -1), (2.0, 1.0, 1.0), strict=True)
    ]
    loss, logs = algorithm.step(algorithm.collate_fn(prepared(algorithm, *attacks)))
    assert loss.item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert logs["rewards/chosen"] == pytest.approx(0.3 * ratios[0], rel=1e-5)
    assert logs["rewards/rejected"] == pytest.approx(0.3 * (ratios[1] + ratios[2]) / 2, rel=1e-5)
    assert algorithm.experience_metrics() == {
        "kl": pytest.approx(divergence, abs=1e-6),
        "desirable": pytest.approx(1 / 3),
    }


def test_a_divergence_below_zero_is_an_error_of_estimation_and_counts_as_none():
    steps = prepared(KTO(trained()), (" boom", 1.0), (" calm", 0.0))
    assert min(step.divergence for step in steps) >= 0


def test_the_divergence_is_the_mean_log_ratio_of_the_attacks_said():
    """The trained table says "song" and "rain" more often than the reference, so it is positive."""
    problem = trained()
    algorithm = KTO(problem)
    steps = prepared(algorithm, (" song", 1.0), (" rain song", 0.0))
    policy, reference = (
        dict(zip(problem.words, table.log_softmax(0).tolist(), strict=True))
        for table in (problem.attacker, problem.baseline)
    )
    song, rain = (policy[word] - reference[word] for word in ("song", "rain"))
    expected = (song + (rain + song)) / 2
    assert expected > 0.5
    assert [step.divergence for step in steps] == pytest.approx([expected] * 2, rel=1e-5)
    assert algorithm.experience_metrics()["kl"] == pytest.approx(expected, rel=1e-5)


def test_a_reward_that_just_reaches_the_threshold_is_desirable():
    steps = prepared(KTO(ToyProblem(), threshold=0.5), (" boom", 0.5), (" calm", 0.49))
    assert [step.desirable for step in steps] == [True, False]


def test_missing_rewards_teach_nothing():
    steps = prepared(KTO(ToyProblem()), (" boom", nan), (" calm", 1.0), (" tree", 0.0))
    assert [step.attack for step in steps] == [" calm", " tree"]


def test_the_classes_weigh_the_same_whatever_their_sizes():
    steps = prepared(KTO(ToyProblem()), (" boom", 1.0), *[(" tree", 0.0)] * 4)
    assert [step.weight for step in steps] == [4.0, 1.0, 1.0, 1.0, 1.0]
    assert [step.desirable for step in steps] == [True, False, False, False, False]


@pytest.mark.parametrize("weight", [1.0, 0.1, 30.0])
def test_a_single_success_among_many_weighs_no_more_than_twenty_of_them(weight):
    algorithm = KTO(ToyProblem(), undesirable_weight=weight)
    steps = prepared(algorithm, (" boom", 1.0), *[(" tree", 0.0)] * 99)
    assert steps[0].weight == pytest.approx(20 * steps[1].weight)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_an_experience_of_one_class_has_no_signal_and_is_left_out(reward):
    """At the reference the expected gradient of one class is zero, enumerated over all attacks."""
    algorithm = KTO(ToyProblem(), desirable_weight=1.0)
    assert prepared(algorithm, (" boom", reward), (" tree", reward)) == []
    assert algorithm.experience_metrics()["desirable"] == reward
    problem = algorithm.problem
    table = problem.attacker.detach().double().requires_grad_()
    ratio = table.log_softmax(0) - table.detach().log_softmax(0)
    good = torch.full((6,), reward == 1.0)
    losses = kto_loss(ratio, good, torch.zeros(6), 0.1)
    (gradient,) = torch.autograd.grad((table.detach().softmax(0) * losses).sum(), table)
    torch.testing.assert_close(gradient, torch.zeros(6, dtype=torch.float64))


def test_without_a_threshold_better_than_the_mean_is_desirable():
    steps = prepared(KTO(ToyProblem(), threshold=None), (" boom", 0.3), (" tree", 0.1))
    assert [step.desirable for step in steps] == [True, False]


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_without_a_threshold_rewards_that_are_all_alike_teach_nothing(reward):
    """The mean of three times 0.1 is a little more than 0.1, and that says nothing."""
    algorithm = KTO(trained(), threshold=None)
    assert not prepared(algorithm, *[(" boom", reward)] * 3)
    assert math.isnan(algorithm.experience_metrics()["desirable"])


def test_without_a_threshold_an_attack_like_the_mean_is_neither_good_nor_bad():
    steps = prepared(
        KTO(ToyProblem(), threshold=None), (" boom", 1.0), (" tree", 0.5), (" calm", 0.0)
    )
    assert [(step.attack, step.desirable) for step in steps] == [(" boom", True), (" calm", False)]


def test_the_divergence_is_that_of_all_attacks_also_of_those_that_teach_nothing():
    attacks = [(" boom", 1.0), (" tree", 0.5), (" calm", 0.0)]
    found = []
    for threshold in (None, 0.5):
        algorithm = KTO(trained(), threshold=threshold)
        prepared(algorithm, *attacks)
        found.append(algorithm.experience_metrics()["kl"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_neither_padding_nor_row_order_nor_micro_batches_change_anything():
    graphs = ASTEnvironment(ToyProblem(), ["one"], tree_width=3, tree_depth=2).rollouts(range(4))
    check_algorithm(KTO(trained(), threshold=None), graphs)


@pytest.mark.slow
def test_yes_or_no_without_siblings_is_enough_to_learn_from():
    environment = ASTEnvironment(ToyProblem(), ["one", "two"], tree_width=1, tree_depth=1)
    curve = learn(KTO, environment, lr=0.1, steps=40)
    assert curve.rewards[0] < 0.5
    assert sum(curve.rewards[-5:]) / 5 > 0.9


def test_steps_that_were_not_prepared_are_named():
    with pytest.raises(ContractError, match="Call prepare"):
        KTO(ToyProblem()).collate_fn([KTOStep("c", " boom", 1.0)])


def test_no_episodes_are_no_steps():
    assert KTO(ToyProblem()).prepare([]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0},
        {"beta": math.inf},
        {"beta": "0.1"},
        {"desirable_weight": "1"},
        {"threshold": nan},
        {"desirable_weight": 0.0},
        {"undesirable_weight": -1.0},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        KTO(ToyProblem(), **options)
