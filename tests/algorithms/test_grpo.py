import math
from dataclasses import replace

import pytest
import torch

from astra_rl import GRPO, Graph, Node, Utterance
from astra_rl.algorithms.advantages import group_advantages
from astra_rl.algorithms.grpo import GRPOStep
from astra_rl.errors import ConfigurationError
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem, check_algorithm

nan = math.nan


def node(attack, reward, *children, context="c"):
    return Node(context, attack, "r", reward, list(children))


def prepared(algorithm, *graphs):
    return algorithm.prepare([step for graph in graphs for step in algorithm.flatten(graph)])


def advantages(algorithm, *graphs):
    return [step.advantage for step in prepared(algorithm, *graphs)]


def plain(**options):
    return GRPO(ToyProblem(), scale="none", **options)


def test_siblings_are_compared_with_each_other_and_not_with_other_groups():
    below = [node(" boom", 10.0, context="c boom"), node(" calm", 20.0, context="c boom")]
    graph = Graph("c", [node(" boom", 0.0, *below), node(" calm", 1.0)])
    assert advantages(plain(), graph) == [-0.5, 0.5, -5.0, 5.0]


def test_siblings_are_a_group_whoever_made_their_contexts():
    """Equal contexts that are different objects, as an environment of one's own makes them."""
    contexts = ["".join(["c", "d"]) for _ in range(2)]
    assert contexts[0] is not contexts[1]
    first, second = (
        Graph(
            "cd",
            [node(" boom", low, context=contexts[0]), node(" calm", high, context=contexts[1])],
        )
        for low, high in ((0.0, 1.0), (10.0, 20.0))
    )
    assert advantages(plain(), first) == [-0.5, 0.5]
    algorithm = plain()
    advantages(algorithm, first)
    assert advantages(algorithm, second) == [-5.0, 5.0]
    assert algorithm.baseline.value is None


def test_missing_rewards_make_no_step():
    graph = Graph("c", [node(" boom", nan), node(" calm", 1.0), node(" tree", 0.0)])
    steps = prepared(plain(), graph)
    assert [(step.attack, step.advantage) for step in steps] == [(" calm", 0.5), (" tree", -0.5)]
    assert advantages(plain(), Graph("c", [node(" boom", nan), node(" calm", nan)])) == []


def test_an_attack_without_tokens_makes_no_step():
    graph = Graph("c", [node("", 0.0), node(" calm", 1.0), node(" tree", 0.0)])
    assert [step.attack for step in prepared(plain(), graph)] == [" calm", " tree"]


def test_ties_have_no_advantage():
    assert advantages(plain(), Graph("c", [node(" boom", 1.0), node(" calm", 1.0)])) == [0.0, 0.0]


def test_without_siblings_rewards_are_compared_with_a_running_average():
    """decay 0.5; first experience: mean 1, so 0 and the average is 1; then 3 - 1 = 2."""
    algorithm = plain(baseline_decay=0.5)
    first, second = Graph("c", [node(" boom", 1.0)]), Graph("d", [node(" boom", 3.0, context="d")])
    assert advantages(algorithm, first) == [0.0]
    assert advantages(algorithm, second) == [2.0]
    assert algorithm.baseline.value == 2.0


def test_the_running_average_survives_a_restart():
    algorithm, twin = plain(), plain()
    advantages(algorithm, Graph("c", [node(" boom", 1.0)]))
    twin.load_state_dict(algorithm.state_dict())
    later = Graph("c", [node(" boom", 5.0)])
    assert advantages(twin, later) == advantages(algorithm, later) == [4.0]


def test_advantages_may_be_scaled_by_group_by_batch_or_not():
    graphs = [
        Graph("c", [node(" boom", 0.0), node(" calm", 4.0)]),
        Graph("d", [node(" boom", 0.0, context="d"), node(" calm", 0.2, context="d")]),
    ]
    by_group = advantages(GRPO(ToyProblem(), scale="group"), *graphs)
    assert by_group == pytest.approx([*group_advantages([0.0, 4.0]), *group_advantages([0.0, 0.2])])
    assert abs(by_group[0]) == pytest.approx(abs(by_group[2]), rel=1e-2)
    by_batch = advantages(GRPO(ToyProblem(), scale="batch"), *graphs)
    assert by_batch[0] / by_batch[2] == pytest.approx(20)
    assert math.fsum(value**2 for value in by_batch) / 4 == pytest.approx(1, rel=1e-3)


def batch_of(algorithm, *steps):
    return algorithm.collate_fn(list(steps))


def step_like(attack=" boom", advantage=1.0, shift=0.0, problem=None):
    """A step whose attack was sampled by a policy that gave each token `shift` nats less."""
    problem = problem or ToyProblem()
    new = problem.get_attacker_logprobs(["c"], [attack])[0].tolist()
    return GRPOStep("c", attack, 0.0, advantage, tuple(value - shift for value in new))


def loss_of(algorithm, *steps):
    return algorithm.step(batch_of(algorithm, *steps))[0].item()


def test_the_loss_of_the_policy_that_sampled_is_minus_the_mean_advantage_over_tokens():
    """Ratio 1 everywhere; 3 tokens of advantage 2 and 1 token of advantage -1: -(6 - 1) / 4."""
    algorithm = plain()
    steps = step_like(" boom boom boom", 2.0), step_like(" calm", -1.0)
    assert loss_of(algorithm, *steps) == pytest.approx(-5 / 4)


def test_the_clip_range_changes_the_loss():
    """Ratio e**0.5 = 1.649 at advantage 1: clipped to 1 + clip_high, or not at all."""
    steps = [step_like(shift=0.5)]
    assert loss_of(plain(clip_high=0.1), *steps) == pytest.approx(-1.1)
    assert loss_of(plain(clip_high=0.9), *steps) == pytest.approx(-math.exp(0.5), rel=1e-5)
    falling = [step_like(shift=-0.5, advantage=-1.0)]
    assert loss_of(plain(clip_low=0.1), *falling) == pytest.approx(0.9)
    assert loss_of(plain(clip_low=0.9), *falling) == pytest.approx(math.exp(-0.5), rel=1e-5)


def test_the_ratio_is_to_the_policy_that_sampled_and_not_to_the_baseline():
    algorithm = plain()
    with torch.no_grad():
        algorithm.problem.attacker += torch.arange(6.0)  # far from the baseline
    graph = Graph("c", [node(" boom", 0.0), node(" calm", 1.0)])
    steps = prepared(algorithm, graph)
    _, logs = algorithm.step(batch_of(algorithm, *steps))
    assert logs["importance_sampling/ratio_max"] == pytest.approx(1)
    assert logs["clip_ratio/region_mean"] == 0


def test_the_sampler_s_log_probabilities_are_the_old_ones_without_a_second_pass():
    class Unscorable(ToyProblem):
        def get_attacker_logprobs(self, contexts, continuations):
            assert not list(continuations), "scored again"
            return torch.zeros(0, 0)

    attacks = [Utterance(name, token_ids=[1, 2], logprobs=[-0.5, -1.5]) for name in ("a", "b")]
    graph = Graph("c", [node(attack, float(index)) for index, attack in enumerate(attacks)])
    assert [step.old_logprobs for step in prepared(GRPO(Unscorable()), graph)] == [(-0.5, -1.5)] * 2


def test_diagnostics_leave_padding_out():
    """All ratios are e**-1; padding, whose ratio would be 1, is not among them."""
    algorithm = plain()
    _, logs = algorithm.step(
        batch_of(algorithm, step_like(" boom", shift=-1.0), step_like(" boom calm", shift=-1.0))
    )
    assert logs["importance_sampling/ratio_max"] == pytest.approx(math.exp(-1), rel=1e-4)
    assert all(isinstance(value, float) for value in logs.values())


class Watched(ToyProblem):
    def __init__(self):
        super().__init__()
        self.baseline_calls = 0

    def get_baseline_logprobs(self, contexts, continuations):
        self.baseline_calls += 1
        return super().get_baseline_logprobs(contexts, continuations)


def test_the_reference_is_run_once_per_experience_if_needed_and_else_never():
    graph = Graph("c", [node(" boom", 0.0), node(" calm", 1.0)])
    for options, calls in (({}, 0), ({"kl_in_reward": 0.1}, 1), ({"kl_in_loss": 0.1}, 1)):
        algorithm = GRPO(Watched(), **options)
        algorithm.step(batch_of(algorithm, *prepared(algorithm, graph)))
        assert algorithm.problem.baseline_calls == calls


def test_divergence_in_the_reward_costs_the_nats_of_the_whole_attack():
    """Raw rewards tie; the attacker gives " boom boom" more than the reference by 2 * gap nats."""
    algorithm = plain(kl_in_reward=0.5)
    problem = algorithm.problem
    with torch.no_grad():
        problem.attacker[problem.words.index("boom")] += 1.0
    gap = (problem.attacker.log_softmax(0) - problem.baseline.log_softmax(0)).tolist()
    boom, calm = (gap[problem.words.index(word)] for word in ("boom", "calm"))
    graph = Graph("c", [node(" boom boom", 1.0), node(" calm", 1.0)])
    half = 0.5 * (2 * boom - calm) / 2
    assert advantages(algorithm, graph) == pytest.approx([-half, half], rel=1e-4)


def test_divergence_in_the_loss_is_the_penalty_per_token():
    algorithm = plain(kl_in_loss=0.7)
    problem = algorithm.problem
    with torch.no_grad():
        problem.attacker[0] += 1.0
    graph = Graph("c", [node(" calm boom", 1.0), node(" tree boom", 1.0)])  # ties: no advantage
    loss, logs = algorithm.step(batch_of(algorithm, *prepared(algorithm, graph)))
    difference = (problem.baseline.log_softmax(0) - problem.attacker.log_softmax(0)).tolist()
    tokens = [difference[problem.words.index(word)] for word in ("calm", "boom", "tree", "boom")]
    k3 = [math.exp(value) - 1 - value for value in tokens]
    assert loss.item() == pytest.approx(0.7 * sum(k3) / 4, rel=1e-4)
    assert logs["kl"] == pytest.approx(-sum(tokens) / 4, rel=1e-4)


class ShortBaseline(ToyProblem):
    """A baseline that reads each text as one token fewer."""

    def get_baseline_logprobs(self, contexts, continuations):
        shorter = [text.rsplit(" ", 1)[0] for text in continuations]
        scored = super().get_baseline_logprobs(contexts, shorter)
        return torch.nn.functional.pad(scored, (0, 2))


def test_comparing_token_by_token_with_another_tokenizer_is_refused():
    attacks = [
        Utterance(text, token_ids=[1, 2], logprobs=[-1.0, -1.0])
        for text in (" boom calm", " tree rain")
    ]
    graph = Graph("c", [node(attack, float(index)) for index, attack in enumerate(attacks)])
    with pytest.raises(ConfigurationError, match="another tokenizer"):
        prepared(GRPO(ShortBaseline(), kl_in_loss=0.1), graph)
    assert len(prepared(GRPO(ShortBaseline(), kl_in_reward=0.1), graph)) == 2


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": "none"}, {"scale": "batch"}, {"kl_in_loss": 0.3}, {"kl_in_reward": 0.3}],
)
def test_neither_padding_nor_row_order_nor_micro_batches_change_anything(options):
    environment = ASTEnvironment(ToyProblem(), ["one", "two"], tree_width=3, tree_depth=2)
    graphs = environment.rollouts(range(6))
    for graph in graphs:
        for index, each in enumerate(graph.nodes()):
            each.attack += " rain" * (index % 3)
    algorithm = GRPO(ToyProblem(), **options)
    with torch.no_grad():
        algorithm.problem.attacker += torch.arange(6) * 0.2
    check_algorithm(algorithm, graphs)


def test_a_batch_that_was_not_prepared_is_on_policy():
    algorithm = plain()
    bare = replace(step_like(), old_logprobs=None)
    assert loss_of(algorithm, bare) == pytest.approx(-1)
    assert algorithm.weight(batch_of(algorithm, bare, bare)) == 2


def test_a_batch_weighs_its_tokens():
    algorithm = plain()
    assert algorithm.weight(batch_of(algorithm, step_like(" boom calm"), step_like(" boom"))) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"clip_low": 0},
        {"clip_high": -0.1},
        {"clip_high": nan},
        {"kl_in_reward": -1},
        {"kl_in_loss": nan},
        {"scale": "std"},
        {"baseline_decay": 1.0},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match=str(next(iter(options.values())))):
        GRPO(ToyProblem(), **options)


def test_a_problem_that_samples_from_another_distribution_is_refused():
    class Truncated(ToyProblem):
        samples_exactly = False

    with pytest.raises(ConfigurationError, match="temperature 1"):
        GRPO(Truncated())
