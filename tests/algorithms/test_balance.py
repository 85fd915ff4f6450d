"""GFlowNets: probabilities in proportion to a reward, checked by enumeration and by hand."""

import json
import math
from itertools import combinations
from random import Random

import pytest
import torch
from tests.cases import cases

from astra_rl import (
    ContrastiveBalance,
    Graph,
    Node,
    Trainer,
    TrainingConfiguration,
    TrajectoryBalance,
)
from astra_rl.algorithms.losses import balance_residual, contrastive_loss
from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.methods import ASTEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.rewards.base import WeightedSum
from astra_rl.rewards.terms import Harm
from astra_rl.testing import ToyProblem, check_algorithm, letter_game

nan = math.nan
KINDS = [TrajectoryBalance, ContrastiveBalance]


def graph(*attacks, context="c"):
    return Graph(context, [Node(context, attack, "r", reward, []) for attack, reward in attacks])


def trained():
    problem = ToyProblem()
    with torch.no_grad():
        problem.attacker += torch.linspace(-1, 1, 6)
    return problem


def prepared(algorithm, *graphs):
    return list(algorithm.prepare([step for each in graphs for step in algorithm.flatten(each)]))


def totals(problem, *attacks):
    """Log-probabilities of attacks under attacker and reference, from the table of logits."""
    tables = [
        dict(zip(problem.words, table.log_softmax(0).tolist(), strict=True))
        for table in (problem.attacker, problem.baseline)
    ]
    return [[sum(table[w] for w in attack.split()) for attack in attacks] for table in tables]


ATTACKS = {" boom calm": 0.5, " tree": 0.0, " rain rain": 0.2, " song": -0.3}


def test_the_contrastive_loss_is_that_of_plain_python_on_the_table_of_logits():
    problem = trained()
    policy, reference = totals(problem, *ATTACKS)
    log_rewards = [r / 0.5 + ref / 2 for r, ref in zip(ATTACKS.values(), reference, strict=True)]
    errors = [
        (policy[i] - policy[j] - log_rewards[i] + log_rewards[j]) ** 2
        for i, j in combinations(range(4), 2)
        if abs(log_rewards[i] - log_rewards[j]) >= 0.4
    ]
    assert 0 < len(errors) < 6
    algorithm = ContrastiveBalance(
        problem, temperature=0.5, reference_temperature=2.0, min_log_gap=0.4
    )
    steps = prepared(algorithm, graph(*ATTACKS.items()))
    batch = algorithm.collate_fn(steps)
    loss, _ = algorithm.step(batch)
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert algorithm.weight(batch) == len(errors)
    metrics = algorithm.experience_metrics()
    assert (metrics["pairs"], metrics["pairs/pruned"]) == (len(errors), 6 - len(errors))


def test_trajectory_balance_is_that_of_plain_python_and_log_z_follows_its_gradient():
    problem = trained()
    policy, reference = totals(problem, *ATTACKS)
    log_rewards = [r / 0.5 + ref for r, ref in zip(ATTACKS.values(), reference, strict=True)]
    errors = [r - p for r, p in zip(log_rewards, policy, strict=True)]
    algorithm = TrajectoryBalance(problem, temperature=0.5, log_z_lr=0.25, replay=0)
    (first, *_) = steps = prepared(algorithm, graph(*ATTACKS.items()))
    log_z = sum(errors) / 4  # a new context begins at the best guess
    assert first.log_z == pytest.approx(log_z, rel=1e-5)
    loss, _ = algorithm.step(algorithm.collate_fn(steps))
    assert loss.item() == pytest.approx(sum((log_z - e) ** 2 for e in errors) / 4, rel=1e-5)
    (one,) = prepared(algorithm, graph((" boom calm", 0.5)))
    # d/dz (z - e)^2 = 2 (z - e): a step of 0.25 times half of it
    assert one.log_z == pytest.approx(log_z - 0.25 * (log_z - errors[0]), rel=1e-5)
    assert algorithm.experience_metrics()["log_z"] == pytest.approx(one.log_z)


def test_a_single_attack_of_a_new_context_is_learned_from():
    """Its own estimate of log Z would make its residual zero; that of other contexts does not."""

    def one(context, word, reward):
        return Graph(context, [Node(context, word, "r", reward)])

    problem = trained()
    algorithm = TrajectoryBalance(problem, temperature=0.5, log_z_lr=0.25, replay=0)
    graphs = [one("a", " boom calm", 1.0), one("b", " calm calm", 0.0), one("c", " tree rain", 0.5)]
    steps = prepared(algorithm, *graphs)
    policy, reference = totals(problem, *(step.attacks[0] for step in steps))
    rewards = [step.rewards[0] / 0.5 for step in steps]
    errors = [r + ref - p for r, ref, p in zip(rewards, reference, policy, strict=True)]
    for row, step in enumerate(steps):
        first = sum(errors[:row] + errors[row + 1 :]) / 2
        assert step.log_z == pytest.approx(first + 0.25 * (errors[row] - first), rel=1e-5)
        assert abs(step.log_z - errors[row]) > 0.01
    (later,) = prepared(algorithm, one("d", " song song", 0.2))
    known = sum(step.log_z for step in steps) / 3
    (error,) = (0.2 / 0.5 + r - p for p, r in zip(*totals(problem, " song song"), strict=True))
    assert later.log_z == pytest.approx(known + 0.25 * (error - known), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_contrastive_loss_over_all_pairs_is_twice_the_variance_and_so_is_its_gradient(seed):
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    log_rewards = torch.randn(7, generator=generator, dtype=torch.float64)
    pairs = torch.triu(torch.ones(7, 7, dtype=torch.bool), diagonal=1)
    residual = balance_residual(logprobs, log_rewards)
    loss, variance = contrastive_loss(residual, pairs), 2 * residual.var()
    torch.testing.assert_close(loss, variance)
    gradients = [
        torch.autograd.grad(each, logprobs, retain_graph=True)[0] for each in (loss, variance)
    ]
    torch.testing.assert_close(*gradients)


def test_the_gradient_of_trajectory_balance_at_the_best_log_z_is_that_of_the_variance():
    logprobs = torch.randn(5, dtype=torch.float64, requires_grad=True)
    log_rewards = torch.randn(5, dtype=torch.float64)
    residual = balance_residual(logprobs, log_rewards)
    at_best = (balance_residual(logprobs, log_rewards, -residual.detach().mean()) ** 2).mean()
    gradients = [
        torch.autograd.grad(each, logprobs, retain_graph=True)[0]
        for each in (at_best, residual.var(correction=0))
    ]
    torch.testing.assert_close(*gradients)


def test_without_pairs_the_loss_is_zero_and_has_a_gradient():
    logprobs = torch.zeros(2, requires_grad=True)
    loss = contrastive_loss(logprobs, torch.zeros(2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logprobs.grad, torch.zeros(2))


def test_large_errors_count_linearly_under_hubers_loss():
    residual = torch.tensor([3.0, 0.0, 0.5])
    pairs = torch.triu(torch.ones(3, 3, dtype=torch.bool), diagonal=1)
    expected = ((3 - 0.5) + (2.5 - 0.5) + 0.5**2 / 2) / 3
    assert contrastive_loss(residual, pairs, huber=1.0).item() == pytest.approx(expected)


def test_pruned_pairs_have_no_gradient():
    problem = trained()
    algorithm = ContrastiveBalance(problem, reference_temperature=None, replay=0)
    steps = prepared(algorithm, graph((" boom", 0.501), (" calm", 0.5), (" tree", 0.0)))
    loss, _ = algorithm.step(algorithm.collate_fn(steps))
    table = problem.attacker.detach().log_softmax(0)
    place = problem.words.index
    boom, calm, tree = (table[place(word)] for word in ("boom", "calm", "tree"))
    expected = ((boom - tree - 5.01) ** 2 + (calm - tree - 5.0) ** 2) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_flattened_at_first_and_the_divisor_falls_evenly_to_one(kind):
    algorithm = kind(
        ToyProblem(),
        temperature=0.1,
        reference_temperature=None,
        annealing=3.0,
        annealing_experiences=2,
        replay=0,
    )
    for divisor in (3.0, 2.0, 1.0, 1.0):
        steps = prepared(algorithm, graph((" boom", 0.9), (" calm", 0.0)))
        values = sorted(value for step in steps for value in step.log_rewards)
        assert values == pytest.approx([0.0, 9.0 / divisor])


@pytest.mark.parametrize(("share", "replayed"), [(0.0, 0), (0.25, 1), (0.5, 3), (0.6, 4)])
def test_so_much_of_what_is_learned_from_is_remembered(share, replayed):
    """Of three fresh attacks and r remembered ones, r / (3 + r) is the share, rounded."""
    options = {"temperature": 1.0, "min_log_gap": 0.0, "replay_share": share}
    algorithm = ContrastiveBalance(ToyProblem(), **options)
    words = ("boom", "tree", "rain", "song", "nice", "calm")
    prepared(algorithm, graph(*((f" {word}", n / 9) for n, word in enumerate(words))))
    (step,) = prepared(algorithm, graph((" boom calm", 0.9), (" calm tree", 0.1), (" nice", 0.3)))
    assert len(step.attacks) == 3 + replayed
    assert algorithm.experience_metrics()["replay/used"] == replayed


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_reference_temperature_the_reference_is_never_run(kind):
    problem = ToyProblem()
    problem.get_baseline_logprobs = None
    algorithm = kind(problem, temperature=0.5, reference_temperature=None)
    steps = prepared(algorithm, graph((" boom", 0.9), (" calm", 0.1)))
    values = sorted(value for step in steps for value in step.log_rewards)
    assert values == pytest.approx([0.2, 1.8])


def test_annealing_goes_on_where_it_was():
    options = {"annealing": 3.0, "annealing_experiences": 4, "replay": 0}
    algorithm, other = (ContrastiveBalance(ToyProblem(), **options) for _ in range(2))
    episode = graph((" boom", 0.9), (" calm", 0.0))
    prepared(algorithm, episode)
    other.load_state_dict(json.loads(json.dumps(algorithm.state_dict())))
    assert prepared(algorithm, episode) == prepared(other, episode)


def test_a_pair_counts_whichever_of_the_two_comes_first():
    """Pruned is what is near, not what rises."""
    options = {"temperature": 1.0, "reference_temperature": None, "replay": 0, "min_log_gap": 0.1}
    attacks = [(" boom calm", 0.9), (" tree", 0.5), (" rain", 0.45)]
    losses = []
    for order in (attacks, attacks[::-1]):
        algorithm = ContrastiveBalance(trained(), **options)
        (step,) = prepared(algorithm, graph(*order))
        batch = algorithm.collate_fn([step])
        assert algorithm.weight(batch) == 2  # 0.5 and 0.45 are too near
        losses.append(algorithm.step(batch)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_group_without_a_pair_is_left_out():
    algorithm = ContrastiveBalance(ToyProblem(), reference_temperature=None)
    graphs = graph((" boom", 0.5), (" calm", 0.5)), graph((" boom", 1.0), context="d")
    assert prepared(algorithm, *graphs) == []


def test_missing_rewards_weigh_nothing():
    algorithm = TrajectoryBalance(ToyProblem(), replay=0)
    steps = prepared(algorithm, graph((" boom", nan), (" calm", 1.0)), graph((" tree", nan)))
    assert [step.attacks for step in steps] == [(" calm",)]


def test_attacks_of_the_same_context_are_compared_across_episodes():
    algorithm = ContrastiveBalance(ToyProblem(), replay=0)
    (step,) = prepared(algorithm, graph((" boom", 1.0)), graph((" tree rain", 0.0)))
    assert step.attacks == (" boom", " tree rain")


def test_large_groups_are_cut_and_nothing_is_lost():
    algorithm = ContrastiveBalance(ToyProblem(), max_group=3, replay=0, reference_temperature=None)
    words = algorithm.problem.words
    steps = prepared(algorithm, graph(*((f" {word}", index) for index, word in enumerate(words))))
    assert sorted(attack for step in steps for attack in step.attacks) == sorted(
        f" {word}" for word in words
    )
    assert max(len(step.attacks) for step in steps) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reference_temperature", [None, 1.5])
def test_neither_padding_nor_row_order_nor_micro_batches_change_anything(
    kind, reference_temperature
):
    graphs = ASTEnvironment(ToyProblem(), ["one", "two"], tree_width=3, tree_depth=2).rollouts(
        range(4)
    )
    for each in graphs:  # texts of different lengths
        for index, node in enumerate(each.nodes()):
            node.attack += " rain" * (index % 3)
    check_algorithm(kind(trained(), reference_temperature=reference_temperature), graphs)


@pytest.mark.parametrize("kind", KINDS)
def test_what_worked_is_learned_from_again(kind):
    algorithm = kind(ToyProblem(), replay_share=0.5)
    prepared(algorithm, graph((" boom", 1.0), (" tree", 0.0)))
    steps = prepared(algorithm, graph((" calm", 0.2), (" rain", 0.1)))
    attacks = {attack for step in steps for attack in step.attacks}
    assert attacks == {" boom", " tree", " calm", " rain"}
    assert algorithm.experience_metrics()["replay/used"] == 2
    assert prepared(algorithm, graph((" calm", 0.2), (" rain", 0.1), context="other"))
    assert algorithm.experience_metrics()["replay/used"] == 0  # nothing of that context


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_json_as_if_nothing_had_happened(kind):
    episodes = [graph((" boom", 1.0), (" tree", 0.0)), graph((" calm", 0.2), (" rain", 0.1))]
    algorithm, other = kind(trained()), kind(trained())
    for each in episodes:
        prepared(algorithm, each)
    other.load_state_dict(json.loads(json.dumps(algorithm.state_dict())))
    again = graph((" song", 0.3), (" nice", 0.6), (" boom", 0.0))
    assert prepared(algorithm, again) == prepared(other, again)


SCORES = dict(zip(ToyProblem().words, (0.9, 0.1, 0.5, 0.7, 0.0, 0.3), strict=True))


class Values(Moderator[str, str]):
    """Scores of the six words, for a game whose best attacker is known exactly."""

    def moderate(self, x):
        return [SCORES[text.strip()] for text in x]


@pytest.mark.slow
@pytest.mark.parametrize("kind", cases(KINDS, by_default=[TrajectoryBalance]))
def test_the_trained_attacker_says_each_word_in_proportion_to_its_reward(kind):
    """One word of six: R(word) = ref(word) * exp(score / 0.5), its sum is Z."""
    problem = ToyProblem(Values())
    problem.length = 1
    environment = ASTEnvironment(problem, ["one"], tree_width=12, tree_depth=1)
    log_r = problem.baseline.log_softmax(0) + torch.tensor(
        [SCORES[word] / 0.5 for word in problem.words]
    )
    algorithm = kind(problem, temperature=0.5)
    config = TrainingConfiguration(
        lr=0.1,
        training_steps=250,
        num_episodes_per_experience=8,
        batch_size=256,
        seed=0,
        optimizer="sgd",
    )
    Trainer(config, environment, algorithm).train()
    found = problem.attacker.detach().softmax(0)
    torch.testing.assert_close(found, log_r.softmax(0), atol=0.02, rtol=0)
    if kind is TrajectoryBalance:
        log_z = algorithm.experience_metrics()["log_z"]
        assert log_z == pytest.approx(log_r.logsumexp(0).item(), abs=0.05)


@pytest.mark.slow
def test_some_experiences_are_played_at_another_temperature():
    environment = letter_game(
        attacker_sampling=Sampling(max_new_tokens=4), reward=WeightedSum({Harm("response"): 1.0})
    )
    problem = environment.problem
    seen = []

    def watch(contexts):
        seen.append(problem.attacker_sampling.temperature)
        return original(contexts)

    original, problem.rollout_prompt_with_attacker = problem.rollout_prompt_with_attacker, watch
    algorithm = ContrastiveBalance(problem, tempered_share=0.5, temperatures=(1.5, 2.0))
    for seed in range(40):
        algorithm.collector.collect(environment, seed, 1)
    hot = [temperature for temperature in seen if temperature != 1.0]
    assert 10 < len(hot) < 30
    assert all(1.5 <= temperature <= 2.0 for temperature in hot)
    assert problem.attacker_sampling.temperature == 1.0
    first = list(seen)
    for seed in range(40):
        algorithm.collector.collect(environment, seed, 1)
    assert seen[len(first) :] == first  # the same seeds, the same temperatures


def test_a_problem_that_knows_no_temperature_says_so():
    with pytest.raises(ConfigurationError, match="tempered_share to 0"):
        ContrastiveBalance(ToyProblem(), tempered_share=0.01)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TrajectoryBalance, {"temperature": 0}),
        (TrajectoryBalance, {"reference_temperature": -1.0}),
        (TrajectoryBalance, {"replay": -1}),
        (TrajectoryBalance, {"replay_share": 1.0}),
        (TrajectoryBalance, {"replay_similarity": 0}),
        (TrajectoryBalance, {"tempered_share": 1.1}),
        (TrajectoryBalance, {"temperatures": (2.0, 1.0)}),
        (TrajectoryBalance, {"log_z_lr": 0}),
        (ContrastiveBalance, {"min_log_gap": nan}),
        (ContrastiveBalance, {"huber": 0}),
        (ContrastiveBalance, {"max_group": 1}),
    ],
)
def test_values_out_of_range_are_refused(kind, options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        kind(ToyProblem(), **options)


def test_draws_do_not_depend_on_what_else_was_drawn():
    algorithm, other = ContrastiveBalance(ToyProblem()), ContrastiveBalance(ToyProblem())
    for each in (algorithm, other):
        prepared(each, graph((" boom", 1.0), (" tree", 0.0), (" rain", 0.4)))
        Random().random()
    again = graph((" song", 0.3))
    assert prepared(algorithm, again) == prepared(other, again)


@pytest.mark.parametrize("kind", KINDS)
def test_the_buffer_drops_the_attack_of_the_lowest_log_r(kind):
    """By harm that is " song song", by log R " calm calm", which the reference hardly says."""
    problem = ToyProblem()
    with torch.no_grad():
        problem.baseline.copy_(torch.tensor([-9.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    algorithm = kind(problem, temperature=1.0, reference_temperature=1.0, replay=2)
    attacks = [(" boom boom", 1.0), (" calm calm", 0.9), (" song song", 0.1)]
    prepared(algorithm, graph(*attacks))
    assert {entry.attack for entry in algorithm.memory.entries} == {" boom boom", " song song"}
    plain = kind(problem, temperature=1.0, reference_temperature=None, replay=2)
    prepared(plain, graph(*attacks))
    assert {entry.attack for entry in plain.memory.entries} == {" boom boom", " calm calm"}
