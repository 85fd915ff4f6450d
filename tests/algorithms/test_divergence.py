"""What the KL penalty does to the gradient, against enumeration and against its coefficient."""

import pytest
import torch

from astra_rl import Graph
from astra_rl.algorithms import ALGORITHMS
from astra_rl.testing import ToyProblem, ToyValueProblem

SCALED = [
    ("grpo", {}),
    ("grpo", {"scale": "batch"}),
    ("gspo", {}),
    ("cispo", {"scale": "batch"}),
    ("cispo", {}),
    ("reinforce++", {}),
    ("reinforce++_baseline", {}),
    ("ppo", {}),
    ("rloo", {}),
]


def moved(problem):
    """The problem, with an attacker away from its reference."""
    with torch.no_grad():
        problem.attacker += 0.3 * torch.arange(len(problem.words))
    return problem


def gradient(algorithm, steps):
    algorithm.problem.attacker.grad = None
    algorithm.step(algorithm.collate_fn(steps))[0].backward()
    return algorithm.problem.attacker.grad.clone()


@pytest.mark.parametrize(("name", "options"), SCALED)
def test_with_rewards_that_tie_the_gradient_is_proportional_to_the_kl_coefficient(
    name, options, node, prepared
):
    # Rewards of zero, which the value function of the toy predicts: it adds no error of its own.
    graphs = [
        Graph("c", [node(f" {word} {other}", 0.0) for other in ("calm", "rain", "nice")])
        for word in ("boom", "tree", "song")
    ]
    kind = ToyValueProblem if name == "ppo" else ToyProblem
    sizes = []
    for beta in (0.1, 0.01, 0.001):
        algorithm = ALGORITHMS[name](moved(kind()), kl_in_reward=beta, **options)
        sizes.append(gradient(algorithm, prepared(algorithm, *graphs)).norm().item() / beta)
    assert sizes[0] > 0.01
    assert sizes == pytest.approx([sizes[0]] * 3, rel=2e-3)


@pytest.mark.parametrize(("name", "options"), SCALED)
def test_where_rewards_differ_their_spread_without_the_penalty_is_the_scale(
    name, options, node, prepared
):
    """The advantage is linear in the penalty: at twice the coefficient it changes twice as much."""
    graph = Graph(
        "c", [node(f" {word} calm", float(word == "boom")) for word in ("boom", "tree", "song")]
    )
    kind = ToyValueProblem if name == "ppo" else ToyProblem
    found = []
    for beta in (0.0, 0.5, 1.0):
        algorithm = ALGORITHMS[name](moved(kind()), kl_in_reward=beta, **options)
        steps = prepared(algorithm, graph)
        found.append(torch.tensor([step.advantages for step in steps]))
    assert (found[1] - found[0]).abs().max() > 0.01
    torch.testing.assert_close(found[2] - found[0], 2 * (found[1] - found[0]))


def test_single_paths_grouped_by_prompt_are_grpo_over_conversations_up_to_a_constant(
    node, advantages
):
    """Returns 0, 1, 2, 5 of conversations of 3 turns: mean 2, standard deviation (n - 1) 2.1602."""
    returns, turns = [0.0, 1.0, 2.0, 5.0], 3
    graphs = [
        Graph("c", [node(" boom", total, node(" calm", 0.0, node(" tree", 0.0)))])
        for total in returns
    ]
    algorithm = ALGORITHMS["grpo"](ToyProblem(), group="prompt", credit="trajectory")
    factor = ((turns * 4 - 1) / (turns * 4 - turns)) ** 0.5
    assert factor == pytest.approx(1.1055, abs=1e-4)
    expected = [factor * (total - 2) / (14 / 3) ** 0.5 for total in returns for _ in range(turns)]
    assert advantages(algorithm, *graphs) == pytest.approx(expected, rel=1e-3)
