"""What the KL penalty does to the gradient, against enumeration and against its coefficient."""

import itertools

import pytest
import torch
from tests.algorithms.tree_games import WORDS, Game, TableProblem, random_logits

from astra_rl import Graph
from astra_rl.algorithms import ALGORITHMS
from astra_rl.algorithms.losses import kl_penalty
from astra_rl.algorithms.policy_steps import PolicyBatch
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


class Texts:
    """All texts of `length` tokens from three, and autoregressive tables of their probabilities.

    A table has the logits of each token given the tokens before it.
    """

    def __init__(self, length, dtype=torch.float64):
        self.length = length
        self.tokens = torch.tensor(list(itertools.product(range(3), repeat=length)))
        self.rows = [(3**t - 1) // 2 for t in range(length)]  # where the prefixes of t tokens begin
        self.dtype = dtype

    def table(self, seed, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        size = (3**self.length - 1) // 2
        return scale * torch.randn(size, 3, generator=generator, dtype=self.dtype)

    def prefixes(self, position):
        """The row of the table for each text's tokens before `position`."""
        powers = 3 ** torch.arange(position - 1, -1, -1)
        return self.rows[position] + (self.tokens[:, :position] * powers).sum(dim=1)

    def logprobs(self, table):
        """(3 ** length, length)."""
        rows = table.log_softmax(dim=-1)
        columns = [rows[self.prefixes(t), self.tokens[:, t]] for t in range(self.length)]
        return torch.stack(columns, dim=1)

    def divergence(self, table, reference):
        """KL of the texts: sum over all of pi (log pi - log ref)."""
        mine, other = (self.logprobs(each).sum(dim=1) for each in (table, reference))
        return (mine.exp() * (mine - other)).sum()

    def divergence_with_prefixes_fixed(self, table, reference):
        """Sum over prefixes of their probability, a constant, times the KL of the next token."""
        mine, other = table.log_softmax(dim=-1), reference.log_softmax(dim=-1)
        by_prefix = (mine.exp() * (mine - other)).sum(dim=1)
        reached = self.logprobs(table).detach().sum(dim=1).exp()
        return sum(
            (reached * by_prefix[self.prefixes(position)]).sum() for position in range(self.length)
        )


def gradient_of_penalty(texts, table, reference, old, **options):
    leaf = table.clone().requires_grad_(True)
    with torch.no_grad():
        log_old, log_reference = texts.logprobs(old), texts.logprobs(reference)
    penalty = kl_penalty(texts.logprobs(leaf), log_reference, log_old, **options)
    (log_old.sum(dim=1).exp() * penalty.sum(dim=1)).sum().backward()
    return leaf.grad


def gradient_of(divergence, table, reference):
    leaf = table.clone().requires_grad_(True)
    divergence(leaf, reference).backward()
    return leaf.grad


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_gradient_of_the_sequence_is_that_of_the_kl_of_whole_texts(length, estimator):
    texts = Texts(length)
    table, reference, other = (texts.table(seed) for seed in range(3))
    exact = gradient_of(texts.divergence, table, reference)
    for old in (table, other):
        found = gradient_of_penalty(
            texts, table, reference, old, estimator=estimator, gradient="sequence"
        )
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_gradient_of_tokens_holds_the_tokens_before_them_fixed(length, estimator):
    texts = Texts(length)
    table, reference = texts.table(0), texts.table(1)
    found = gradient_of_penalty(texts, table, reference, table, estimator=estimator)
    fixed = gradient_of(texts.divergence_with_prefixes_fixed, table, reference)
    torch.testing.assert_close(found, fixed)
    exact = gradient_of(texts.divergence, table, reference)
    assert torch.allclose(found, exact, rtol=0.01) == (length == 1)


@pytest.mark.parametrize("length", [2, 4])
def test_k1_in_the_reward_has_the_gradient_of_the_kl_of_whole_texts(length):
    """The policy gradient of minus its penalty, enumerated: sum of pi * k1 * d log pi."""
    texts = Texts(length)
    table, reference = texts.table(0).requires_grad_(True), texts.table(1)
    logprobs = texts.logprobs(table).sum(dim=1)
    cost = (logprobs - texts.logprobs(reference).sum(dim=1)).detach()
    (logprobs.detach().exp() * cost * logprobs).sum().backward()
    torch.testing.assert_close(table.grad, gradient_of(texts.divergence, table.detach(), reference))


class Enumerated(ToyProblem):
    """An attacker that is a table over all texts, which are asked for in their order."""

    def __init__(self, texts, table):
        super().__init__()
        self.texts, self.table = texts, table

    def get_attacker_logprobs(self, contexts, continuations):
        return self.texts.logprobs(self.table)


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 4])
def test_rloo_with_kl_in_loss_ends_at_the_reference_reweighted_by_the_reward(length):
    """The expected gradient: each text has the weight of its probability under the policy."""
    texts = Texts(length, torch.float32)
    reference = texts.logprobs(texts.table(1))
    rewards = texts.table(2).new_tensor([float(row.sum() % 3 == 0) for row in texts.tokens])
    beta = 0.5
    optimum = (reference.sum(dim=1) + rewards / beta).softmax(dim=0)
    table = texts.table(1).requires_grad_(True)
    algorithm = ALGORITHMS["rloo"](Enumerated(texts, table), kl_in_loss=beta)
    optimizer = torch.optim.Adam([table], lr=0.05)
    count = len(texts.tokens)
    for _ in range(300):
        old = texts.logprobs(table).detach()
        batch = PolicyBatch(
            ["c"] * count,
            ["a"] * count,
            rewards[:, None].expand(-1, length),
            old,
            old.sum(dim=1).exp(),
            [length] * count,
            reference,
        )
        optimizer.zero_grad()
        algorithm.step(batch)[0].backward()
        optimizer.step()
    policy = texts.logprobs(table).detach().sum(dim=1).exp()
    start = reference.sum(dim=1).exp()
    assert (start - optimum).abs().sum() / 2 > 0.1
    assert (policy - optimum).abs().sum() / 2 < 0.005


@pytest.mark.parametrize(("options", "expected"), [({}, 0.1), ({"replay_temperature": 1.0}, 1.0)])
def test_replayed_attacks_are_drawn_at_a_temperature_of_their_own(options, expected, node):
    algorithm = ALGORITHMS["trajectory_balance"](ToyProblem(), temperature=0.1, **options)
    seen = []
    algorithm.memory.sample = lambda *_, temperature: seen.append(temperature) or []
    graph = Graph("c", [node(" boom", 1.0), node(" calm", 0.0)])
    algorithm.prepare(algorithm.flatten(graph))
    assert seen == [expected]


def noisy_values(count=1):
    """A value function with a small error."""
    problem = moved(ToyValueProblem(count))
    with torch.no_grad():
        problem.estimates += 1e-3 * torch.linspace(-1, 1, 8 * count).reshape(8, count)
    return problem


def test_without_a_penalty_the_error_of_a_value_function_is_not_scaled_up_to_a_signal(
    node, prepared
):
    # As at the start of most runs: no success yet. Whitening would make the error a unit of reward.
    graph = Graph("c", [node(f" {word} rain", 0.0, cost=0.0) for word in ("calm", "nice", "song")])
    bound = {"constraints": {"cost": {"at_least": 0.5}}}
    for name, count, options in (("ppo", 1, {}), ("ppo_lagrangian", 2, bound)):
        steps = prepared(ALGORITHMS[name](noisy_values(count), **options), graph)
        assert 0 < max(abs(value) for step in steps for value in step.advantages) < 0.01


@pytest.mark.parametrize("credit", ["return_to_go", "trajectory", "leaf"])
def test_the_penalty_in_the_reward_counts_in_every_turn(credit):
    # With rewards of zero the gradient is minus that of the KL of whole conversations.
    game = Game(2, rewards=lambda history: 0.0)
    logits, reference = random_logits(game), random_logits(game, 1)

    def divergence(conversation):
        turns = [(conversation[:n], conversation[n]) for n in range(1, len(conversation))]
        rows = [(game.histories.index(state), WORDS.index(word)) for state, word in turns]
        policy, other = game.policy(leaf), game.policy(reference.double())
        return sum(policy[row] - other[row] for row in rows)

    leaf = logits.double().requires_grad_()
    expected = torch.autograd.grad(-game.expected(leaf, divergence), leaf)[0]
    total = torch.zeros_like(expected)
    for chance, children in game.trees(2, game.policy(logits.double())):
        problem = TableProblem(game, logits)
        problem.baseline.data.copy_(reference)
        algorithm = ALGORITHMS["rloo"](problem, credit=credit, kl_in_reward=1.0)
        steps = algorithm.prepare(algorithm.flatten(game.graph(children)))
        total -= chance * gradient(algorithm, steps).double()
    assert torch.allclose(2 * total, expected, atol=1e-6)


def test_adaptive_coefficients_measure_what_the_loss_weighs(node, prepared):
    # One first turn and four second ones: each level has half of the weight.
    problem = ToyProblem()
    with torch.no_grad():
        problem.attacker.copy_(torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, 0.5]))
    later = [node(" song song", 1.0), *(node(" song song", 0.0) for _ in range(3))]
    steps = [Graph("c", [node(" calm calm", 0.0, *later)])]
    table = problem.attacker.detach().log_softmax(0)
    ratio = table - problem.baseline.log_softmax(0)
    row = {word: index for index, word in enumerate(problem.words)}
    kl = float(ratio[row["calm"]] + ratio[row["song"]])  # of two words each
    entropy = -float(table[row["calm"]] + table[row["song"]]) / 2
    algorithm = ALGORITHMS["rloo"](
        problem, kl_in_reward=0.1, kl_target=10.0 * abs(kl), entropy_coef=0.1, entropy_target=1.0
    )
    seen = {}
    for name, each in (("kl", algorithm.kl), ("entropy", algorithm.entropy)):
        each.coefficient.update = lambda measured, count, name=name, **_: seen.update(
            {name: (measured, count)}
        )
    prepared(algorithm, *steps)
    assert seen["kl"] == pytest.approx((kl, 5), rel=1e-4)
    assert seen["entropy"] == pytest.approx((entropy, 5), rel=1e-4)
