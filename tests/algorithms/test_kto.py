"""KTO: attacks that worked against attacks that did not, without pairs."""

import math

import pytest
import torch

from astra_rl import KTO, Graph, Node
from astra_rl.algorithms.kto import KTOStep
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem, check_algorithm

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
    steps = prepared(KTO(trained()), (" boom", 0.0), (" calm", 0.0))
    assert min(step.divergence for step in steps) >= 0


def test_missing_rewards_teach_nothing():
    steps = prepared(KTO(ToyProblem()), (" boom", nan), (" calm", 1.0), (" tree", 0.0))
    assert [step.attack for step in steps] == [" calm", " tree"]


def test_the_classes_weigh_the_same_whatever_their_sizes():
    steps = prepared(KTO(ToyProblem()), (" boom", 1.0), *[(" tree", 0.0)] * 4)
    assert [step.weight for step in steps] == [4.0, 1.0, 1.0, 1.0, 1.0]
    assert [step.desirable for step in steps] == [True, False, False, False, False]


def test_a_single_success_among_many_weighs_no_more_than_twenty():
    steps = prepared(KTO(ToyProblem()), (" boom", 1.0), *[(" tree", 0.0)] * 99)
    assert steps[0].weight == 20.0


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_an_experience_of_one_class_is_learned_from(reward):
    steps = prepared(KTO(ToyProblem()), (" boom", reward), (" tree", reward))
    assert all(step.weight > 0 for step in steps)
    assert {step.desirable for step in steps} == {reward == 1.0}


def test_without_a_threshold_better_than_the_mean_is_desirable():
    steps = prepared(KTO(ToyProblem(), threshold=None), (" boom", 0.3), (" tree", 0.1))
    assert [step.desirable for step in steps] == [True, False]


def test_neither_padding_nor_row_order_nor_micro_batches_change_anything():
    graphs = ASTEnvironment(ToyProblem(), ["one"], tree_width=3, tree_depth=2).rollouts(range(4))
    check_algorithm(KTO(trained(), threshold=None), graphs)


def test_steps_that_were_not_prepared_are_named():
    with pytest.raises(ContractError, match="Call prepare"):
        KTO(ToyProblem()).collate_fn([KTOStep("c", " boom", 1.0)])


def test_no_episodes_are_no_steps():
    assert KTO(ToyProblem()).prepare([]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0},
        {"threshold": nan},
        {"desirable_weight": 0.0},
        {"undesirable_weight": -1.0},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        KTO(ToyProblem(), **options)
