"""A2C and PPO: what the value function expects, and what it learns."""

import math

import pytest
import torch

from astra_rl import A2C, PPO, Graph, Harness
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem, ToyValueProblem

nan = math.nan


def problem_with(*estimates):
    """A toy whose value function expects these returns at the tokens of any attack."""
    problem = ToyValueProblem()
    with torch.no_grad():
        problem.estimates[: len(estimates), 0] = torch.tensor(estimates)
    return problem


@pytest.fixture
def conversation(node):
    """Two turns: " boom calm" of reward 1, then " rain" of reward 2."""
    return Graph("c", [node(" boom calm", 1.0, node(" rain", 2.0, context="c boom calm"))])


def test_the_reward_of_a_turn_comes_with_its_last_token_and_the_next_turn_follows_it(
    conversation, prepared
):
    """Values 0.5, 0.25 and, in the second turn, 0.5. lambda = 1: returns 3, 3, 2."""
    algorithm = A2C(problem_with(0.5, 0.25), alpha=0.0)
    first, second = prepared(algorithm, conversation)
    assert first.advantages == pytest.approx((2.5, 2.75))
    assert second.advantages == pytest.approx((1.5,))
    assert first.returns == ((3.0, 3.0),)
    assert second.returns == ((2.0,),)


def test_ppo_normalises_advantages_over_the_tokens_of_the_experience(conversation, prepared):
    """lambda 0: 0.25 - 0.5, 1 + 0.5 - 0.25, 2 - 0.5 are -0.25, 1.25 and 1.5."""
    algorithm = PPO(problem_with(0.5, 0.25), gae_lambda=0.0)
    found = [value for step in prepared(algorithm, conversation) for value in step.advantages]
    raw = [-0.25, 1.25, 1.5]
    mean = sum(raw) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in raw) / 3)
    assert found == pytest.approx([(value - mean) / deviation for value in raw], rel=1e-3)


def test_divergence_is_paid_where_it_happens(node, prepared):
    """Gap g at " boom": the return from the first token is 1 - 0.5 (g + h), from the second
    1 - 0.5 h."""
    problem = problem_with()
    with torch.no_grad():
        problem.attacker[problem.words.index("boom")] += 1.0
    gap = (problem.attacker.log_softmax(0) - problem.baseline.log_softmax(0)).tolist()
    g, h = (gap[problem.words.index(word)] for word in ("boom", "calm"))
    algorithm = A2C(problem, alpha=0.0, kl_in_reward=0.5)
    (step,) = prepared(algorithm, Graph("c", [node(" boom calm", 1.0)]))
    assert step.advantages == pytest.approx((1 - 0.5 * (g + h), 1 - 0.5 * h), rel=1e-4)


def test_how_much_of_the_returns_was_expected_is_logged(conversation, prepared):
    """Returns 3, 3, 2 and estimates 0.5, 0.25, 0.5: variance 2 / 9, errors 2.5, 2.75, 1.5."""
    algorithm = A2C(problem_with(0.5, 0.25), alpha=0.0)
    prepared(algorithm, conversation)
    errors = [2.5, 2.75, 1.5]
    mean = sum(errors) / 3
    variance = sum((error - mean) ** 2 for error in errors) / 3
    metrics = algorithm.experience_metrics()
    assert metrics["explained_variance"] == pytest.approx(1 - variance / (2 / 9))
    assert metrics["value/mean"] == pytest.approx(1.25 / 3)


def test_the_loss_is_that_of_the_policy_and_of_the_values(node, prepared):
    """One attack, on policy: -A plus half the value loss, (return - 0.25)**2 / 2 at clip 9."""
    algorithm = PPO(problem_with(0.25), value_clip=9.0)
    graphs = [Graph("c", [node(" boom", 1.0)]), Graph("d", [node(" calm", 0.0)])]
    steps = prepared(algorithm, *graphs)
    loss, logs = algorithm.step(algorithm.collate_fn(steps))
    policy = -sum(step.advantages[0] for step in steps) / 2
    values = (0.75**2 / 2 + 0.25**2 / 2) / 2
    assert logs["policy_loss"] == pytest.approx(policy, abs=1e-6)
    assert logs["value_loss"] == pytest.approx(values)
    assert loss.item() == pytest.approx(policy + 0.5 * values, abs=1e-6)
    assert logs["value/clip_ratio"] == 0


def test_values_that_moved_too_far_are_clipped(node, prepared):
    algorithm = PPO(problem_with(0.25), value_clip=0.2)
    graphs = [Graph("c", [node(" boom", 1.0)]), Graph("d", [node(" calm", 0.0)])]
    batch = algorithm.collate_fn(prepared(algorithm, *graphs))
    with torch.no_grad():
        algorithm.problem.estimates += 0.5
    # at 0.75, held at 0.45: max(0.25**2, 0.55**2) and max(0.75**2, 0.45**2)
    _, logs = algorithm.step(batch)
    assert logs["value_loss"] == pytest.approx((0.55**2 + 0.75**2) / 4, rel=1e-5)
    assert logs["value/clip_ratio"] == 1


def test_a2c_mixes_in_the_divergence(node, prepared):
    """(1 - alpha) * (policy + values / 2) + alpha * KL, with KL of the k3 estimate."""
    problem = problem_with(0.25)
    with torch.no_grad():
        problem.attacker[problem.words.index("boom")] += 1.0
    algorithm = A2C(problem, alpha=0.3)
    graph = Graph("c", [node(" boom", 1.0)])
    loss, logs = algorithm.step(algorithm.collate_fn(prepared(algorithm, graph)))
    logprob = problem.get_attacker_logprobs(["c"], [" boom"]).item()
    gap = logprob - problem.get_baseline_logprobs(["c"], [" boom"]).item()
    policy, values = -0.75 * logprob, 0.75**2 / 2
    expected = 0.7 * (policy + 0.5 * values) + 0.3 * (math.exp(-gap) - 1 + gap)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert logs["kl"] == pytest.approx(gap, rel=1e-4)


def test_ppo_learns_from_each_attack_in_every_epoch_in_another_order():
    problem = ToyValueProblem()
    environment = ASTEnvironment(problem, ["one", "two"], tree_width=2, tree_depth=1)
    batches = list(Harness(environment, PPO(problem), 4, batch_size=4).experience(0))
    assert [len(batch) for batch in batches] == [4] * 8
    epochs = [[*batches[2 * epoch].attacks, *batches[2 * epoch + 1].attacks] for epoch in range(4)]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_missing_rewards_do_not_count_for_the_others(node, prepared):
    def values(*rewards):
        nodes = [
            node(word, r) for word, r in zip((" boom", " calm", " tree"), rewards, strict=True)
        ]
        return [step.advantages for step in prepared(PPO(problem_with(0.25)), Graph("c", nodes))]

    assert len(values(1.0, nan, 0.0)) == 2
    first, second = values(1.0, nan, 0.0)
    assert first == pytest.approx((1.0,), rel=1e-3)
    assert second == pytest.approx((-1.0,), rel=1e-3)


@pytest.mark.parametrize("kind", [A2C, PPO])
def test_a_problem_without_a_value_function_is_refused(kind):
    with pytest.raises(ConfigurationError, match=r"ToyProblem is no ValueFunctionProblem"):
        kind(ToyProblem())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda values: values[:, :, 0], r"values returned shape \(1, 2\)"),
        (lambda values: torch.cat([values, values], dim=-1), r"needs \(1, T, 1\)"),
        (lambda values: values[:, :1], "estimated 1 values for an attack of 2 tokens"),
    ],
)
def test_values_of_a_wrong_shape_are_refused(spoil, message, node, prepared):
    class Wrong(ToyValueProblem):
        def values(self, contexts, continuations):
            return spoil(super().values(contexts, continuations))

    with pytest.raises(ContractError, match=message):
        prepared(PPO(Wrong()), Graph("c", [node(" boom calm", 1.0)]))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PPO, {"gamma": 1.5}, "gamma=1.5"),
        (PPO, {"gae_lambda": -0.1}, "gae_lambda=-0.1"),
        (PPO, {"value_coef": 0.0}, "value_coef=0.0"),
        (PPO, {"value_clip": nan}, "value_clip=nan"),
        (A2C, {"alpha": 1.0}, "alpha=1.0"),
        (A2C, {"kl_in_loss": 0.1}, "give alpha"),
    ],
)
def test_values_out_of_range_are_refused(kind, options, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(ToyValueProblem(), **options)
