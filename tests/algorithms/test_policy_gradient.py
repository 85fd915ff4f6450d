"""What all members of the policy-gradient family have in common."""

import math
from functools import partial
from itertools import cycle, product

import pytest
import torch
from tests.cases import cases

from astra_rl import Conversation, Graph, PolicyGradient, PolicyStep, Utterance
from astra_rl.algorithms import ALGORITHMS
from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.estimators import MonteCarloReturn
from astra_rl.algorithms.kl import AdaptiveCoefficient
from astra_rl.algorithms.losses import PolicyLoss
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ScriptedModerator, ToyProblem, ToyValueProblem, check_algorithm

nan = math.nan
OPTIONS = {"ppo_lagrangian": {"constraints": {"harm": {"at_least": 0.5}}}}
FAMILY = {
    name: partial(kind, **OPTIONS.get(name, {}))
    for name, kind in ALGORITHMS.items()
    if issubclass(kind, PolicyGradient)
}


def problem_for(name, **options):
    return ToyValueProblem(ALGORITHMS[name].values_needed(**OPTIONS.get(name, {})) or 1, **options)


def bare(problem=None, surrogate="clip", **options):
    """The family without any comparison: an attack's advantage is its reward."""
    loss = PolicyLoss(surrogate=surrogate)
    return PolicyGradient(problem or ToyProblem(), MonteCarloReturn(Credit()), loss, **options)


def loss_of(algorithm, *steps):
    return algorithm.step(algorithm.collate_fn(list(steps)))[0].item()


# What becomes a step.


def test_missing_rewards_make_no_step_and_do_not_count_for_the_others(siblings, prepared):
    for missing in (nan, math.inf, -math.inf):
        steps = prepared(bare(), siblings(missing, 1.0, 0.0))
        assert [(step.attack, step.advantages) for step in steps] == [
            (" calm", (1.0,)),
            (" tree", (0.0,)),
        ]
        assert prepared(bare(), siblings(missing, missing)) == []


@pytest.mark.parametrize("name", FAMILY)
def test_missing_rewards_weigh_nothing_in_any_algorithm(name, siblings, prepared):
    algorithm = FAMILY[name](problem_for(name))
    steps = prepared(algorithm, siblings(nan, 1.0, 0.0, 0.5, harm=0.2))
    assert [step.attack for step in steps] == [" calm", " tree", " rain"]
    assert math.isfinite(loss_of(algorithm, *steps))
    assert prepared(FAMILY[name](problem_for(name)), siblings(nan, nan, harm=0.2)) == []


def test_an_attack_without_tokens_makes_no_step(node, prepared):
    graph = Graph("c", [node("", 0.0), node(" calm", 1.0), node(" tree", 0.0)])
    assert [step.attack for step in prepared(bare(), graph)] == [" calm", " tree"]


def test_a_step_knows_its_place(node):
    below = [node(" rain", 2.0, context="c boom")]
    steps = bare().flatten(Graph("c", [node(" boom", 0.0, *below), node(" calm", 1.0)]))
    assert [(step.attack, step.place.parent) for step in steps] == [
        (" boom", None),
        (" calm", None),
        (" rain", 0),
    ]


def test_the_weights_of_a_shared_attack(node, prepared):
    """Three conversations run through the first turn, one through the second.

    A random walk visits each first turn with probability 1/2, those below with 1/6.
    """
    below = [node(word, 1.0, context="c boom") for word in (" rain", " song", " tree")]
    graph = Graph("c", [node(" boom", 2.0, *below), node(" calm", 3.0)])
    for kind, weights, loss in (
        ("expected_return", [1 / 2] * 2 + [1 / 6] * 3, (2 / 2 + 3 / 2 + 3 / 6) / (3 / 2)),
        ("once", [1, 1, 1, 1, 1], (2 + 3 + 3 * 1) / 5),
        ("per_path", [3, 1, 1, 1, 1], (3 * 2 + 3 + 3 * 1) / 7),
    ):
        algorithm = bare(shared_nodes=kind)
        assert [step.weight for step in algorithm.flatten(graph)] == pytest.approx(weights)
        steps = prepared(algorithm, graph)
        assert sum(step.weight for step in steps) == pytest.approx(5)
        assert loss_of(algorithm, *steps) == pytest.approx(-loss)  # ratio 1, one token each
        assert algorithm.weight(algorithm.collate_fn(steps)) == 5
    assert bare().shared_nodes == "expected_return"


# Old and reference log-probabilities.


def test_the_ratio_is_to_the_policy_that_sampled_and_not_to_the_baseline(siblings, prepared):
    algorithm = bare()
    with torch.no_grad():
        algorithm.problem.attacker += torch.arange(6.0)  # far from the baseline
    steps = prepared(algorithm, siblings(0.0, 1.0))
    _, logs = algorithm.step(algorithm.collate_fn(steps))
    assert [logs["ratio/mean"], logs["ratio/max"]] == pytest.approx([1, 1])
    assert logs["clip_ratio/region_mean"] == 0


def test_the_sampler_s_log_probabilities_are_the_old_ones_without_a_second_pass(node, prepared):
    class Unscorable(ToyProblem):
        def get_attacker_logprobs(self, contexts, continuations):
            assert not list(continuations), "scored again"
            return torch.zeros(0, 0)

    attacks = [Utterance(name, token_ids=[1, 2], logprobs=[-0.5, -1.5]) for name in ("a", "b")]
    graph = Graph("c", [node(attack, float(index)) for index, attack in enumerate(attacks)])
    assert [step.old_logprobs for step in prepared(bare(Unscorable()), graph)] == [(-0.5, -1.5)] * 2


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_log_probabilities_may_be_scored_once_more_as_the_loss_does(name, node, prepared):
    """The sampler's are off by 0.1 and 0.3; only GSPO's bounds are too narrow for that."""
    problem = ToyProblem()
    exact = problem.get_attacker_logprobs(["c"], [" boom calm"])[0].tolist()
    off = [exact[0] + 0.1, exact[1] - 0.3]
    attacks = [Utterance(" boom calm", token_ids=[1, 2], logprobs=off) for _ in range(2)]
    graph = Graph("c", [node(attack, float(index)) for index, attack in enumerate(attacks)])
    expected = {"sampled": off, "scored": exact}
    default = {"grpo": "sampled", "gspo": "scored"}[name]
    for options, kind in (({}, default), *(({"old_logprobs": each}, each) for each in expected)):
        algorithm = FAMILY[name](problem, **options)
        for step in prepared(algorithm, graph):
            assert step.old_logprobs == pytest.approx(expected[kind])
        metrics = algorithm.experience_metrics()
        difference = "sampling/sampling_logp_difference"
        assert (f"{difference}/mean" in metrics) == (kind == "scored")
        if kind == "scored":
            assert metrics[f"{difference}/mean"] == pytest.approx(0.2)
            assert metrics[f"{difference}/max"] == pytest.approx(0.3)


class Watched(ToyProblem):
    def __init__(self):
        super().__init__()
        self.baseline_calls = 0

    def get_baseline_logprobs(self, contexts, continuations):
        self.baseline_calls += 1
        return super().get_baseline_logprobs(contexts, continuations)


def test_the_reference_is_run_once_per_experience_if_needed_and_else_never(siblings, prepared):
    for options, calls in (({}, 0), ({"kl_in_reward": 0.1}, 1), ({"kl_in_loss": 0.1}, 1)):
        algorithm = bare(Watched(), **options)
        algorithm.step(algorithm.collate_fn(prepared(algorithm, siblings(0.0, 1.0))))
        assert algorithm.problem.baseline_calls == calls


# Divergence.


def moved(problem, **nats):
    """Move the attacker's logits of some words away from its baseline."""
    with torch.no_grad():
        for word, shift in nats.items():
            problem.attacker[problem.words.index(word)] += shift
    gap = problem.attacker.log_softmax(0) - problem.baseline.log_softmax(0)
    return {word: gap[index].item() for index, word in enumerate(problem.words)}


@pytest.mark.parametrize("estimator", [None, "k1", "k2", "k3"])
def test_divergence_in_the_reward_costs_the_nats_of_the_whole_attack(estimator, node, advantages):
    """Of the attack " boom boom" those of both its tokens, as k1 whatever the loss uses."""
    algorithm = bare(kl_in_reward=0.5, kl_in_loss=0.1, kl_estimator=estimator)
    gap = moved(algorithm.problem, boom=1.0)
    graph = Graph("c", [node(" boom boom", 1.0), node(" calm", 1.0)])
    expected = [1 - 0.5 * 2 * gap["boom"], 1 - 0.5 * gap["calm"]]
    assert advantages(algorithm, graph) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("estimator", [None, "k1", "k2", "k3"])
def test_divergence_in_the_loss_is_the_penalty_per_token(estimator, node, prepared):
    """Rewards of zero leave the penalty alone; k3 unless another is asked for."""
    algorithm = bare(kl_in_loss=0.7, kl_estimator=estimator)
    gap = moved(algorithm.problem, calm=1.0)
    graph = Graph("c", [node(" calm boom", 0.0), node(" tree boom", 0.0)])
    steps = prepared(algorithm, graph)
    loss, logs = algorithm.step(algorithm.collate_fn(steps))
    tokens = [gap[word] for word in ("calm", "boom", "tree", "boom")]
    nats = {
        None: lambda d: math.exp(-d) - 1 + d,
        "k1": lambda d: d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(-d) - 1 + d,
    }[estimator]
    assert loss.item() == pytest.approx(0.7 * sum(map(nats, tokens)) / 4, rel=1e-4)
    assert logs["kl"] == pytest.approx(sum(tokens) / 4, rel=1e-4)


@pytest.mark.parametrize("name", FAMILY)
def test_an_attacker_that_has_not_moved_has_ratio_one_and_no_divergence(name, prepared):
    problem = problem_for(name)
    make = partial(FAMILY[name], kl_in_reward=0.1, **({} if name == "a2c" else {"kl_in_loss": 0.1}))
    algorithm = make(problem)
    graphs = ASTEnvironment(problem, ["one", "two"], tree_width=3).rollouts(range(3))
    for graph in graphs:
        for each in graph.nodes():
            each.reward_terms["harm"] = each.reward
    _, logs = algorithm.step(algorithm.collate_fn(prepared(algorithm, *graphs)))
    assert logs["kl"] == pytest.approx(0, abs=1e-6)
    ratios = [logs.get("ratio/mean", 1.0), logs.get("ratio/max", 1.0)]
    assert ratios == pytest.approx([1, 1], abs=1e-6)
    assert logs.get("clip_ratio/region_mean", 0.0) == 0


class ShortBaseline(ToyValueProblem):
    """A baseline that reads each text as one token fewer."""

    def get_baseline_logprobs(self, contexts, continuations):
        shorter = [text.rsplit(" ", 1)[0] for text in continuations]
        scored = super().get_baseline_logprobs(contexts, shorter)
        return torch.nn.functional.pad(scored, (0, 2))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grpo", {"kl_in_loss": 0.1}),
        ("ppo", {"kl_in_reward": 0.1}),
        ("reinforce++", {"kl_in_reward": 0.1}),
    ],
)
def test_comparing_token_by_token_with_another_tokenizer_is_refused(name, options, node, prepared):
    attacks = [
        Utterance(text, token_ids=[1, 2], logprobs=[-1.0, -1.0])
        for text in (" boom calm", " tree rain")
    ]
    graph = Graph("c", [node(attack, float(index)) for index, attack in enumerate(attacks)])
    with pytest.raises(ConfigurationError, match="another tokenizer"):
        prepared(FAMILY[name](ShortBaseline(), **options), graph)
    assert len(prepared(FAMILY["grpo"](ShortBaseline(), kl_in_reward=0.1), graph)) == 2


def test_the_price_of_divergence_adapts_and_survives_a_restart(siblings, prepared):
    """Target 0.1 nats and far more measured: the price rises by 0.2 * 2 attacks / 10."""
    algorithm = bare(kl_in_reward=0.5, kl_target=0.1, kl_horizon=10)
    moved(algorithm.problem, boom=3.0, calm=3.0)
    prepared(algorithm, siblings(1.0, 1.0))
    assert algorithm.experience_metrics()["kl_coef"] == pytest.approx(0.5 * 1.04)
    twin = bare(kl_in_reward=0.5, kl_target=0.1, kl_horizon=10)
    twin.load_state_dict(algorithm.state_dict())
    assert twin.kl.coefficient.value == algorithm.kl.coefficient.value


# The loss.


def test_the_loss_of_the_policy_that_sampled_is_minus_the_mean_advantage_over_tokens(step_like):
    """Ratio 1 everywhere; 3 tokens of advantage 2 and 1 token of advantage -1: -(6 - 1) / 4."""
    algorithm = bare()
    steps = step_like(" boom boom boom", 2.0), step_like(" calm", -1.0)
    assert loss_of(algorithm, *steps) == pytest.approx(-5 / 4)


def test_diagnostics_leave_padding_out(step_like):
    """All ratios are e**-1; padding, whose ratio would be 1, is not among them."""
    algorithm = bare()
    steps = [step_like(" boom", shift=-1.0), step_like(" boom calm", shift=-1.0)]
    _, logs = algorithm.step(algorithm.collate_fn(steps))
    found = [logs["ratio/max"], logs["ratio/mean"]]
    assert found == pytest.approx([math.exp(-1)] * 2, rel=1e-4)
    assert logs["clip_ratio/low_mean"] == 0  # advantages are positive
    assert all(isinstance(value, float) for value in logs.values())


def test_the_entropy_is_estimated_from_what_was_sampled(step_like):
    algorithm = bare()
    steps = [step_like(" boom"), step_like(" calm tree")]
    _, logs = algorithm.step(algorithm.collate_fn(steps))
    values = [value for step in steps for value in step.old_logprobs]
    assert logs["entropy"] == pytest.approx(-sum(values) / 3)


def test_a_batch_that_was_not_prepared_is_refused():
    algorithm = bare()
    with pytest.raises(ContractError, match="Call prepare"):
        algorithm.collate_fn([PolicyStep("c", " boom", 0.0)])


def test_a_batch_weighs_what_its_loss_is_a_mean_over(step_like):
    steps = [step_like(" boom calm"), step_like(" boom")]
    for name, weight in (("dapo", 3), ("grpo", 2), ("dr_grpo", 2), ("ppo", 3), ("rloo", 2)):
        algorithm = FAMILY[name](ToyValueProblem())
        assert algorithm.weight(algorithm.collate_fn(steps)) == weight


CHECKED_OPTIONS = {
    "plain": {},
    "kl_in_reward": {"kl_in_reward": 0.3},
    "per_path_and_kl_in_loss": {"shared_nodes": "per_path", "kl_in_loss": 0.3},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "name"),
    cases(product(CHECKED_OPTIONS, FAMILY), by_default=set(zip(cycle(CHECKED_OPTIONS), FAMILY))),
)
def test_neither_padding_nor_row_order_nor_micro_batches_change_anything(name, options):
    options = CHECKED_OPTIONS[options]
    if name == "a2c":
        options = {key: value for key, value in options.items() if key != "kl_in_loss"}
    problem = problem_for(name)
    environment = ASTEnvironment(problem, ["one", "two"], tree_width=3, tree_depth=2)
    graphs = environment.rollouts(range(6))
    for graph in graphs:
        for index, each in enumerate(graph.nodes()):
            each.attack += " rain" * (index % 3)
            each.reward_terms["harm"] = each.reward
    algorithm = FAMILY[name](problem, **options)
    with torch.no_grad():
        problem.attacker += torch.arange(6) * 0.2
        problem.estimates += torch.arange(8)[:, None] * 0.1
    check_algorithm(algorithm, graphs)


@pytest.mark.parametrize("name", FAMILY)
def test_the_order_of_the_episodes_changes_no_advantage(name):
    problem = problem_for(name)
    graphs = ASTEnvironment(problem, ["one", "two"], tree_width=3, tree_depth=2).rollouts(range(4))
    for graph in graphs:
        for each in graph.nodes():
            each.reward_terms["harm"] = each.reward

    def found(ordered):
        algorithm = FAMILY[name](problem)
        flat = [step for graph in ordered for step in algorithm.flatten(graph)]
        return {
            (id(step.place.episode), step.place.index): step.advantages
            for step in algorithm.prepare(flat)
        }

    first, second = found(graphs), found(graphs[::-1])
    assert first.keys() == second.keys()
    for key, values in first.items():
        assert values == pytest.approx(second[key], abs=1e-9)


# Groups.


def test_episodes_that_open_with_the_very_same_conversation_are_groups_of_their_own(advantages):
    """What an episode teaches must not depend on which others are in its batch."""
    problem = ToyProblem(ScriptedModerator({"boom": 1.0, "calm": 0.3}))
    opening = Conversation("hello")
    environment = ASTEnvironment(problem, [opening], tree_width=3, tree_depth=1)
    first, second = environment.rollouts([1, 2])
    assert first.context is second.context
    algorithm = FAMILY["grpo"](problem, scale="none")
    alone = advantages(algorithm, first) + advantages(algorithm, second)
    assert advantages(algorithm, first, second) == alone


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_in_reward": -1}, "kl_in_reward=-1"),
        ({"kl_in_reward": "0.1"}, "kl_in_reward='0.1'; it must be a number"),
        ({"kl_horizon": -1}, "kl_horizon=-1"),
        ({"entropy_target": None, "entropy_coef": None}, "entropy_coef=None"),
        ({"kl_corrected": "no"}, "kl_corrected='no'"),
        ({"kl_in_loss": 0.1, "kl_estimator": "k1", "kl_corrected": False}, "gradient .* is zero"),
        ({"kl_in_loss": nan}, "kl_in_loss=nan"),
        ({"kl_estimator": "k4"}, "kl_estimator='k4'"),
        ({"kl_in_reward": 0.1, "kl_estimator": "k3"}, "always k1"),
        ({"kl_gradient": "text"}, "kl_gradient='text'"),
        ({"kl_gradient": "sequence", "kl_estimator": "k2"}, "the mean of k2"),
        ({"kl_gradient": "sequence", "kl_corrected": False}, "needs the probability ratio"),
        ({"kl_target": 1.0}, "kl_in_reward=0.0"),
        ({"kl_in_reward": 0.1, "kl_target": -1.0}, "kl_target=-1.0"),
        ({"kl_in_reward": 0.1, "kl_target": 1.0, "kl_horizon": 0}, "kl_horizon=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"epochs": True}, "epochs=True"),
        ({"shared_nodes": "twice"}, "shared_nodes='twice'"),
        ({"old_logprobs": "old"}, "old_logprobs='old'"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        bare(**options)


@pytest.mark.parametrize("name", FAMILY)
def test_a_problem_that_samples_from_another_distribution_is_refused(name):
    class Truncated(ToyValueProblem):
        samples_exactly = False

    with pytest.raises(ConfigurationError, match="temperature 1"):
        FAMILY[name](Truncated())


@pytest.mark.parametrize("name", ["reinforce", "a2c"])
def test_what_has_no_ratio_learns_from_an_experience_once(name):
    with pytest.raises(ConfigurationError, match="does not correct for a policy that has moved"):
        FAMILY[name](problem_for(name), epochs=2)
    assert FAMILY["grpo"](ToyProblem(), epochs=2).epochs == 2


def test_steps_of_one_s_own_stand_alone():
    """Without a place each is an episode of its own."""
    steps = [PolicyStep("c", " boom", reward) for reward in (1.0, 3.0)]
    algorithm = FAMILY["grpo"](ToyProblem(), baseline_decay=0.5)
    assert [step.advantages for step in algorithm.prepare(steps)] == [(-1.0,), (1.0,)]


@pytest.mark.parametrize(("divergence", "error"), [(0.0, -0.2), (5.5, 0.1), (99.0, 0.2)])
def test_the_price_reacts_no_more_strongly_than_to_a_fifth_in_either_direction(divergence, error):
    price = AdaptiveCoefficient(1.0, target=5.0, horizon=10)
    price.update(divergence, 4)
    assert price.value == pytest.approx(1 + error * 4 / 10)
