import math

import pytest

from astra_rl.core.environment import Environment, Graph, Node
from astra_rl.core.evaluator import Evaluator
from astra_rl.core.problem import Problem, ValueFunctionProblem
from astra_rl.errors import ConfigurationError
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem, graph_signature


class Plain(Environment):
    """One turn that says which seed it was."""

    def rollout(self, seed=None):
        return Graph("start", [Node("start", str(seed), "r", float(seed or 0))])


class Attacks(Evaluator):
    def compute_metrics(self, graph):
        return {"attacks": [node.attack for node in graph.nodes()]}

    def aggregate_metrics(self, metrics):
        return {"attacks": ["".join(each["attacks"]) for each in metrics]}


def evaluate(environment, *arguments, n=None, **options):
    return Attacks(environment, *arguments, **options).evaluate(n, progress=False)["attacks"]


def test_an_environment_needs_only_rollout():
    environment = Plain(ToyProblem())
    assert [graph.children[0].attack for graph in environment.rollouts([0, 1])] == ["0", "1"]
    assert environment.eval_rollout(3).children[0].attack == "3"
    assert len(environment.eval_rollouts([1, None])) == 2


def test_an_environment_that_cannot_open_with_a_context_says_so():
    with pytest.raises(NotImplementedError, match=r"Plain cannot start .* override eval_rollout"):
        Plain(ToyProblem()).eval_rollout("a prompt")


def test_without_seeds_an_evaluation_plays_the_first_integers():
    assert evaluate(Plain(ToyProblem()), n=3) == ["0", "1", "2"]
    assert len(evaluate(Plain(ToyProblem()))) == 20


def test_seed_zero_among_the_seeds_is_played():
    assert evaluate(Plain(ToyProblem()), [0, 5]) == ["0", "5"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_the_batch_size_changes_nothing(batch_size):
    environment = ASTEnvironment(ToyProblem(), ["p"], tree_depth=1)
    played = evaluate(environment, ["a", "b"], n=12, batch_size=batch_size)
    assert played == evaluate(environment, ["a", "b"], n=12)


def test_a_prompt_played_again_is_another_trial_in_a_later_batch_too():
    environment = ASTEnvironment(
        ToyProblem(words="abcdefghijklmnopqrstuvwxyz"), ["p"], tree_depth=3
    )
    played = evaluate(environment, ["same"], n=8, batch_size=2)
    assert len(set(played)) == 8


def test_more_rollouts_than_integer_seeds_are_refused_as_they_would_repeat():
    with pytest.raises(ConfigurationError, match="n_rollouts=3 and 2 seeds"):
        evaluate(Plain(ToyProblem()), [0, 1], n=3)


@pytest.mark.parametrize(
    ("arguments", "what"), [({"seeds": []}, "seeds"), ({"batch_size": 0}, "0")]
)
def test_an_evaluator_that_could_play_nothing_is_refused(arguments, what):
    with pytest.raises(ConfigurationError, match=what):
        Attacks(Plain(ToyProblem()), **arguments)


def test_zero_rollouts_aggregate_nothing():
    assert evaluate(Plain(ToyProblem()), n=0) == []


def test_a_progress_bar_changes_nothing_of_the_result(capsys):
    environment = Plain(ToyProblem())
    assert Attacks(environment).evaluate(3) == Attacks(environment).evaluate(3, progress=False)
    assert Attacks(environment).env is environment


def test_evaluating_does_not_disturb_the_global_generator():
    import torch

    environment = ASTEnvironment(ToyProblem(), ["p"])
    torch.manual_seed(0)
    expected = torch.rand(2).tolist()
    torch.manual_seed(0)
    evaluate(environment, ["a"])
    assert torch.rand(2).tolist() == expected


def test_the_interfaces_cannot_be_used_without_what_they_ask_for():
    for interface in (Problem, ValueFunctionProblem, Environment, Evaluator):
        with pytest.raises(TypeError, match="abstract"):
            interface(ToyProblem())


def test_a_value_function_problem_is_ours_and_a_problem():
    assert ValueFunctionProblem.__module__ == "astra_rl.core.problem"
    assert issubclass(ValueFunctionProblem, Problem)
    assert "value" in ValueFunctionProblem.__abstractmethods__


def test_a_problem_without_named_terms_has_none_to_record():
    problem = ToyProblem()
    rewards, terms = problem.reward_terms(["c"], [" boom calm"], [" boom calm"])
    assert list(rewards) == [1.0]
    assert list(terms) == [{}]
    assert not math.isnan(rewards[0])
    graph = ASTEnvironment(problem, ["p"]).rollout(0)
    assert graph_signature(graph)[0][0] == "p"
