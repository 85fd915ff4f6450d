"""Turns that were not continued by choice are truncated, not finished.

The oracle is that of `tree_games`: the enumerated expectation over whole conversations.
"""

from functools import partial
from itertools import cycle, product

import pytest
import torch
from tests.algorithms.tree_games import ROOT, WORDS, Game, TableProblem, random_logits
from tests.cases import cases

from astra_rl import ConfigurationError, Trainer, TrainingConfiguration
from astra_rl.algorithms import ALGORITHMS
from astra_rl.algorithms.credit import Continuation, Credit, tree_gae
from astra_rl.algorithms.weighting import visit_probabilities
from astra_rl.methods import ASTEnvironment
from astra_rl.methods.environments import BestOfNEnvironment, PrunedTreeEnvironment
from astra_rl.testing import ToyValueProblem

nan = float("nan")
REWARDS = [1.0, 2.0, 4.0, 8.0, 16.0]
PARENTS = [None, None, 0, 0, 2]
"""Two first turns; the first has children 2 and 3, and turn 2 has child 4."""


@pytest.mark.parametrize(
    ("kind", "best", "sampled"),
    [
        ("turn", [1, 2, 4, 8, 16], [1, 2, 4, 8, 16]),
        # best: turn 3 is unknown, so turn 0 has 1 + 20; sampled: 4 + 16 / 0.5, 8, 1 + (36 + 8) / 2
        ("return_to_go", [21, 2, 20, nan, 16], [23, 2, 36, 8, 16]),
        # sampled: 4 + 0.5 * 32 = 20, 1 + 0.5 * (20 + 8) / 2 = 8
        ("mean_backup", [7, 2, 12, nan, 16], [8, 2, 20, 8, 16]),
        ("max_backup", [7, 2, 12, nan, 16], [7, 2, 12, nan, 16]),
        ("leaf", [16, 2, 16, nan, 16], [16, 2, 32, 0, 16]),
        ("trajectory", [21, 2, 21, nan, 21], [23, 2, 37, 9, 21]),
    ],
)
def test_the_credit_of_a_truncated_turn_by_hand(kind, best, sampled):
    """Of turns 2 and 3 only turn 2 was continued: as the best, or with probability 1/2."""
    rest = Continuation()
    cut = [rest, rest, rest, Continuation(truncated=True), rest]
    half = [rest, rest, Continuation(False, 0.5), Continuation(True, 0.5), rest]
    assert Credit(kind, 0.5)(REWARDS, PARENTS, cut) == pytest.approx(best, nan_ok=True)
    assert Credit(kind, 0.5)(REWARDS, PARENTS, half) == pytest.approx(sampled, nan_ok=True)


def test_gae_of_a_truncated_turn_by_hand():
    """Values 0, gamma = lambda = 1: advantages are the returns of `return_to_go` above."""
    rest = Continuation()
    rewards, values = [[reward] for reward in REWARDS], [[0.0]] * 5
    gae = partial(tree_gae, rewards, values, PARENTS, gamma=1.0, lam=1.0)
    cut = [rest, rest, rest, Continuation(truncated=True), rest]
    half = [rest, rest, Continuation(False, 0.5), Continuation(True, 0.5), rest]
    assert [row[0] for row in gae(how=cut)] == pytest.approx([21, 2, 20, nan, 16], nan_ok=True)
    assert [row[0] for row in gae(how=half)] == pytest.approx([23, 2, 36, 8, 16])


def test_gae_of_a_truncated_turn_with_the_value_of_the_next_state_by_hand():
    """Turn 3 is worth 8 + 10, and turn 0 is worth 1 + (20 + 18) / 2; with gamma 0.5 it is 8 + 5."""
    rest, cut = Continuation(), Continuation(truncated=True)
    how, after = [rest, rest, rest, cut, rest], [nan, nan, nan, 10.0, nan]
    rewards, values = [[reward] for reward in REWARDS], [[0.0]] * 5
    gae = partial(tree_gae, rewards, values, PARENTS, how=how)
    assert [row[0] for row in gae(gamma=1.0, lam=1.0, after=after)] == [20, 2, 20, 18, 16]
    assert [row[0] for row in gae(gamma=0.5, lam=1.0, after=after)] == [7.25, 2, 12, 13, 16]
    # One-step errors: the next value only.
    assert [row[0] for row in gae(gamma=1.0, lam=0.0, after=after)] == [1, 2, 4, 18, 16]
    # What is no truncated turn does not read it, and one drawn at random keeps its estimate of 0.
    half = [rest, rest, Continuation(False, 0.5), Continuation(True, 0.5), rest]
    plain = tree_gae(rewards, values, PARENTS, gamma=1.0, lam=1.0, how=half)
    assert tree_gae(rewards, values, PARENTS, gamma=1.0, lam=1.0, how=half, after=after) == plain


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_a_value_function_estimates_what_comes_after_a_truncated_turn(name):
    problem = ToyValueProblem(seed=1)
    with torch.no_grad():
        problem.estimates[0] = 0.7  # of the first token of an attack, whatever the context
    environment = PrunedTreeEnvironment(problem, ["a"], tree_width=3, tree_depth=2, keep=1)
    (graph,) = environment.rollouts([0])
    cut = [node for node in graph.nodes() if node.truncated]
    assert [node.next_context for node in cut] == [
        node.context + node.attack + node.response for node in cut
    ]
    assert len(cut) == 2
    assert all(node.next_context is None for node in graph.nodes() if not node.truncated)
    algorithm = ALGORITHMS[name](problem, gae_lambda=1.0)
    steps = algorithm.prepare(algorithm.flatten(graph))
    assert len(steps) == 6  # all of them
    for step in steps:
        if step.next_context is not None:
            assert step.returns[0] == pytest.approx((step.reward + 0.7,) * 2)


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "dapo"])
def test_the_spread_of_a_group_of_drawn_turns_is_no_scale(name):
    game = GAMES["full2"]
    problem = Playable(game, random_logits(game, seed=0))
    environment = PrunedTreeEnvironment(
        problem, [ROOT], tree_width=3, tree_depth=2, keep=1, selection="sampled"
    )
    graphs = environment.rollouts(range(2))
    refused = ALGORITHMS[name](problem, credit="return_to_go")
    steps = [step for graph in graphs for step in refused.flatten(graph)]
    with pytest.raises(ConfigurationError, match=r"scale='group'.*selection='sampled'.*'batch'"):
        refused.prepare(steps)
    for options in ({"scale": "batch"}, {"scale": "none"}):
        ALGORITHMS[name](problem, credit="return_to_go", **options).prepare(steps)
    ALGORITHMS[name](problem).prepare(steps)  # each turn has its own reward


def test_an_ended_child_counts_as_much_as_one_with_three_leaves():
    """Children: a leaf of reward 1, and a turn with three leaves of reward 0."""
    rewards, parents = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [None, 0, 0, 2, 2, 2]
    assert Credit("leaf")(rewards, parents)[0] == 1 / 2
    assert Credit("trajectory")(rewards, parents)[0] == 1 / 2


def last_reward(game, logits):
    """Gradient of the expected reward of the last turn of a conversation."""
    leaf = logits.detach().double().requires_grad_()
    return torch.autograd.grad(game.expected(leaf, game.rewards), leaf)[0]


GAMES = {"full2": Game(2), "ragged3": Game(3, ended=[".a", ".bb"])}


def mean_ascent(name, trees, game, logits, **options):
    problem = TableProblem(game, logits)
    total = torch.zeros_like(logits, dtype=torch.float64)
    for chance, tree in trees:
        algorithm = ALGORITHMS[name](problem, **options)
        flat = algorithm.flatten(game.graph(tree))
        steps = algorithm.prepare(flat)
        assert len(steps) == len(flat)
        loss, _ = algorithm.step(algorithm.collate_fn(steps))
        (gradient,) = torch.autograd.grad(loss, problem.attacker)
        total -= chance * sum(step.weight for step in flat) * gradient.double()
    return total


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize(
    ("name", "options", "objective"),
    [
        ("rloo", {"credit": "return_to_go"}, Game.gradient),
        ("rloo", {"credit": "trajectory"}, Game.gradient),
        ("rloo", {"credit": "leaf"}, lambda game, logits: last_reward(game, logits)),
        ("a2c", {"alpha": 0.0}, Game.gradient),
    ],
    ids=["return_to_go", "trajectory", "leaf", "a2c"],
)
@pytest.mark.parametrize("shape", ["trees", "chains"])
def test_full_trees_and_sampled_chains_have_the_gradient_of_the_objective(
    game, name, options, objective, shape
):
    game = GAMES[game]
    logits = random_logits(game, seed=2)
    trees = getattr(game, shape)(2, game.policy(logits.double()))
    found = mean_ascent(name, trees, game, logits, **options)
    assert torch.allclose(found, objective(game, logits), atol=5e-6)


class Playable(TableProblem):
    """The table as a problem that an environment can play."""

    def rollout_prompt_with_attacker(self, contexts):
        chance = self.attacker.detach()[self._states(contexts)].softmax(-1)
        drawn = torch.multinomial(chance, 1)
        return [WORDS[each] for each in drawn.flatten().tolist()]

    def rollout_prompt_with_target(self, contexts):
        return ["" for _ in contexts]

    def reward(self, contexts, attacks, responses):
        return [self.game.rewards(c + a) for c, a in zip(contexts, attacks, strict=True)]

    def advance(self, context, attack, response):
        return str(context) + attack


PLANT = {".a": 0.0, ".b": 0.5}
"""To plant ("a") earns 0 and then 1, to grab ("b") 0.5 and then 0."""


def plant_and_grab():
    game = Game(2, rewards=lambda h: PLANT.get(h, 1.0 if h.startswith(".a") else 0.0))
    return Playable(game, torch.zeros(len(game.histories), len(WORDS)))


ENVIRONMENTS = {
    "tree": partial(ASTEnvironment, tree_width=4),
    "pruned": partial(PrunedTreeEnvironment, tree_width=4, keep=2, selection="sampled"),
    "best_of_n": partial(BestOfNEnvironment, tree_width=4, selection="sampled"),
    "pruned_best": partial(PrunedTreeEnvironment, tree_width=4, keep=2),
    "best_of_n_best": partial(BestOfNEnvironment, tree_width=4),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "name"),
    cases(
        product(ENVIRONMENTS, ["rloo", "grpo"]),
        by_default=set(zip(ENVIRONMENTS, cycle(["rloo", "grpo"]))),
    ),
)
def test_planting_is_learned_though_only_some_turns_are_continued(environment, name):
    """Before, grabbing was learned: a turn that was cut off counted as worth 0 from then on."""
    torch.manual_seed(0)
    problem = plant_and_grab()
    # Dividing by the deviation of a group is biased: it is largest where the future is known.
    scale = {"scale": "none"} if name == "grpo" else {}
    algorithm = ALGORITHMS[name](problem, credit="return_to_go", **scale)
    config = TrainingConfiguration(
        lr=0.3,
        optimizer="adam",
        batch_size=64,
        training_steps=25,
        num_episodes_per_experience=16,
        seed=0,
    )
    played = ENVIRONMENTS[environment](problem, [ROOT], tree_depth=2)
    Trainer(config, played, algorithm).train()
    assert float(problem.attacker.detach()[0].softmax(-1)[0]) > 0.9


@pytest.mark.parametrize("kind", ["best_of_n", "best_of_n_best"])
def test_siblings_that_are_not_continued_are_truncated_and_last_turns_are_not(kind):
    game = Game(3)
    problem = Playable(game, torch.zeros(len(game.histories), len(WORDS)))
    graphs = ENVIRONMENTS[kind](problem, [ROOT], tree_depth=3).rollouts(range(40))
    share = None if kind == "best_of_n_best" else 1 / 4
    first = []
    for graph in graphs:
        *early, last = graph.sibling_groups()
        for siblings in early:
            assert [node.truncated for node in siblings] == [not n.children for n in siblings]
            assert [node.continuation_probability for node in siblings] == [share] * 4
        assert not any(node.truncated for node in last)
        first.append([bool(node.children) for node in graph.children].index(True))
        # A continued turn passes on the weight of its siblings.
        assert visit_probabilities(graph) == pytest.approx([1 / 4] * 12)
    assert share is None or all(first.count(row) >= 4 for row in range(4))


def test_the_number_of_pruned_turns_gives_the_probability():
    problem = plant_and_grab()
    environment = PrunedTreeEnvironment(
        problem, [ROOT], tree_width=4, tree_depth=2, keep=3, selection="sampled"
    )
    graph = environment.rollout(0)
    assert [node.continuation_probability for node in graph.children] == [3 / 4] * 4
    assert sum(node.truncated for node in graph.children) == 1
    everything = PrunedTreeEnvironment(problem, [ROOT], tree_width=4, tree_depth=2, keep=4)
    assert not any(node.truncated for node in everything.rollout(0).nodes())


def test_evaluation_is_of_the_best_of_n_whatever_the_selection():
    problem = plant_and_grab()
    environment = BestOfNEnvironment(problem, [ROOT], 8, 1, selection="sampled")
    graphs = environment.eval_rollouts(range(6))
    assert all([node.attack for node in graph.nodes()] == ["b"] for graph in graphs)


@pytest.mark.parametrize("kind", [PrunedTreeEnvironment, BestOfNEnvironment])
def test_an_unknown_selection_is_refused(kind):
    with pytest.raises(Exception, match="selection='random'; choose from"):
        kind(plant_and_grab(), [ROOT], selection="random")


def test_a_conversation_that_ends_by_a_rule_is_not_truncated():
    class StopsAtHalf(ASTEnvironment):
        def is_over(self, branch):
            return branch.node.reward >= 0.5

    graph = StopsAtHalf(plant_and_grab(), [ROOT], tree_width=4, tree_depth=2).rollout(0)
    assert {node.attack: bool(node.children) for node in graph.children} == {"a": True, "b": False}
    assert not any(node.truncated for node in graph.nodes())
