"""Trees and steps that the tests of the policy-gradient family have in common."""

import pytest

from astra_rl import Graph, Node
from astra_rl.algorithms.policy_steps import PreparedStep
from astra_rl.testing import ToyProblem


def _node(attack, reward, *children, context="c", **terms):
    return Node(context, attack, "r", reward, list(children), reward_terms=terms)


def _prepared(algorithm, *graphs):
    return list(algorithm.prepare([step for graph in graphs for step in algorithm.flatten(graph)]))


def _step_like(attack=" boom", advantage=1.0, shift=0.0, problem=None, **fields):
    """A step whose attack was sampled by a policy that gave each token `shift` nats less."""
    problem = problem or ToyProblem()
    old = [value - shift for value in problem.get_attacker_logprobs(["c"], [attack])[0].tolist()]
    advantages = (advantage,) * len(old)
    return PreparedStep("c", attack, 0.0, old_logprobs=tuple(old), advantages=advantages, **fields)


@pytest.fixture
def node():
    return _node


@pytest.fixture
def prepared():
    return _prepared


@pytest.fixture
def step_like():
    return _step_like


@pytest.fixture
def advantages():
    """First tokens' advantages of what an algorithm makes of graphs."""
    return lambda algorithm, *graphs: [step.advantages[0] for step in _prepared(algorithm, *graphs)]


@pytest.fixture
def siblings():
    """One episode of single-token attacks with these rewards."""
    words = (" boom", " calm", " tree", " rain", " song", " nice")

    def make(*rewards, context="c", **options):
        nodes = [
            _node(word, reward, context=context, **options)
            for word, reward in zip(words, rewards, strict=False)
        ]
        return Graph(context, nodes)

    return make
