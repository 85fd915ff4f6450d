"""The gradient on trees is that of the expected return of a conversation.

Against `Game.gradient`, which differentiates the sum over all conversations in float64. Trees are
enumerated too where there are few enough, so most tests have no noise.
"""

from functools import partial

import pytest
import torch
from tests.algorithms.tree_games import ROOT, WORDS, Game, TableProblem, random_logits, walk_weights
from tests.cases import cases

from astra_rl import DPO, KTO, Trainer, TrainingConfiguration
from astra_rl.algorithms import ALGORITHMS
from astra_rl.algorithms.weighting import count_paths, visit_probabilities
from astra_rl.methods import ASTEnvironment

FULL = {depth: Game(depth) for depth in range(1, 5)}
RAGGED = {
    2: Game(2, ended=[".a"]),
    3: Game(3, ended=[".a", ".bb"]),
    4: Game(4, ended=[".ab", ".b", ".aaa"]),
}
GAMES = {f"full{depth}": game for depth, game in FULL.items()} | {
    f"ragged{depth}": game for depth, game in RAGGED.items()
}
ENUMERATED = [
    *((1, name) for name in GAMES),
    *((2, name) for name in ("full1", "full2", "ragged2", "ragged3")),
    *((3, name) for name in ("full1", "full2", "ragged2")),
    *((4, name) for name in ("full1", "full2", "ragged2")),
]
SAMPLED = [
    *((2, name) for name in ("full3", "full4", "ragged4")),
    *((3, name) for name in ("full3", "full4", "ragged3", "ragged4")),
    *((4, name) for name in ("full3", "full4", "ragged3", "ragged4")),
]
LARGE = [(3, "full4"), (4, "full3"), (4, "full4"), (4, "ragged4")]

BASELINE = 0.3
"""A constant in place of the running average, which is another in every experience."""


def with_constant_baseline(kind, problem, **options):
    algorithm = kind(problem, credit="return_to_go", **options)
    algorithm.estimator.baseline.value = BASELINE
    return algorithm


MEMBERS = {
    "rloo": partial(with_constant_baseline, ALGORITHMS["rloo"]),
    "reinforce": partial(with_constant_baseline, ALGORITHMS["reinforce"]),
    "grpo": partial(with_constant_baseline, ALGORITHMS["grpo"], scale="none"),
    "dr_grpo": partial(with_constant_baseline, ALGORITHMS["dr_grpo"], max_tokens=1),
    "dapo": partial(with_constant_baseline, ALGORITHMS["dapo"], scale="none"),
    "gspo": partial(with_constant_baseline, ALGORITHMS["gspo"], scale="none"),
    "cispo": partial(with_constant_baseline, ALGORITHMS["cispo"], scale="none"),
    "a2c": partial(ALGORITHMS["a2c"], alpha=0.0),
}


def scale_of(name, width):
    """Minus the mean of a group that includes the attack itself shrinks its gradient."""
    includes_itself = name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
    return (width - 1) / width if includes_itself and width > 1 else 1.0


def gradient_of(algorithm, graphs):
    """Gradient of the loss of an experience in the attacker's table, and the steps trained on."""
    steps = algorithm.prepare([step for graph in graphs for step in algorithm.flatten(graph)])
    table = algorithm.problem.attacker
    if not steps:
        return torch.zeros_like(table), steps
    loss, _ = algorithm.step(algorithm.collate_fn(steps))
    return torch.autograd.grad(loss, table)[0].double(), steps


def ascent(make, problem, graph):
    """The unnormalised ascent direction on one tree: weights are the visit probabilities."""
    gradient, steps = gradient_of(make(problem), [graph])
    weights = walk_weights(graph)
    return -gradient * sum(weights[step.place.index] for step in steps)


def expected_ascent(name, width, game, logits):
    problem = TableProblem(game, logits)
    policy = game.policy(logits.double())
    return sum(
        chance * ascent(MEMBERS[name], problem, game.graph(tree))
        for chance, tree in game.trees(width, policy)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "game"),
    cases(ENUMERATED, by_default=[case for case in ENUMERATED if case != (4, "full2")]),
)
def test_the_mean_gradient_over_all_trees_is_that_of_the_expected_return(width, game):
    game = GAMES[game]
    logits = random_logits(game)
    found = expected_ascent("rloo", width, game, logits)
    assert torch.allclose(found, game.gradient(logits), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("game", ["full2", "ragged2", "ragged3"])
@pytest.mark.parametrize("name", MEMBERS)
def test_so_is_that_of_every_member_of_the_family(name, game):
    game = GAMES[game]
    logits = random_logits(game, seed=1)
    found = expected_ascent(name, 2, game, logits) / scale_of(name, 2)
    assert torch.allclose(found, game.gradient(logits), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "game"),
    cases(SAMPLED, by_default=[case for case in SAMPLED if case not in LARGE]),
)
def test_so_is_that_of_sampled_trees_within_their_error(width, game):
    game = GAMES[game]
    logits = random_logits(game)
    problem = TableProblem(game, logits)
    policy = game.policy(logits.double())
    generator = torch.Generator().manual_seed(0)
    exact = game.gradient(logits)
    direction = exact / exact.norm()
    along = torch.stack(
        [
            (ascent(MEMBERS["rloo"], problem, game.graph(tree)) * direction).sum()
            for tree in (game.sample(width, policy, generator) for _ in range(120))
        ]
    )
    error = float(along.std() / len(along) ** 0.5)
    assert error < 0.2 * exact.norm()
    assert float(along.mean()) == pytest.approx(float(exact.norm()), abs=4 * error)


@pytest.mark.parametrize("game", ["full2", "ragged2"])
@pytest.mark.parametrize("name", ["ppo", "reinforce++", "reinforce++_baseline", *MEMBERS])
def test_an_experience_of_all_trees_has_the_gradient_up_to_a_positive_factor(name, game):
    """Whitening divides by a deviation that is itself estimated, so only the direction is exact.

    The policy is uniform, so an ordered tree is as likely as any other. A first turn that ended
    stands for the four pairs of second turns that it does not have.
    """
    game = GAMES[game]
    logits = torch.zeros(len(game.histories), len(WORDS))
    trees = [
        tree
        for tree in game.ordered_trees(2)
        for _ in range(4 ** sum(game.is_last(ROOT + word) for word, _ in tree))
    ]
    options = {} if name in ("ppo", "a2c") else {"credit": "return_to_go"}
    more = {"ppo": {"gae_lambda": 1.0}, "a2c": {"alpha": 0.0}}.get(name, {})
    scale = {"scale": "none"} if name in ("grpo", "dapo", "gspo", "cispo") else {}
    algorithm = ALGORITHMS[name](TableProblem(game, logits), **options, **more, **scale)
    found = -gradient_of(algorithm, [game.graph(tree) for tree in trees])[0]
    exact = game.gradient(logits)
    cosine = float((found * exact).sum() / found.norm() / exact.norm())
    assert cosine == pytest.approx(1, abs=1e-5)


def test_the_value_function_is_fitted_where_conversations_are():
    """Its gradient at a state: the probability of the state times the error of the estimate."""
    game = GAMES["ragged3"]
    logits, values = random_logits(game), torch.linspace(-1, 1, len(game.histories))
    policy = game.policy(logits.double())
    problem = TableProblem(game, logits, values)
    found = torch.zeros(len(values))
    for chance, tree in game.trees(2, policy):
        algorithm = ALGORITHMS["a2c"](problem, alpha=0.0, value_coef=1.0)
        graph = game.graph(tree)
        steps = algorithm.prepare(algorithm.flatten(graph))
        loss, _ = algorithm.step(algorithm.collate_fn(steps))
        found += chance * sum(walk_weights(graph)) * torch.autograd.grad(loss, problem.estimates)[0]

    def rest(each, state):
        return sum(map(game.rewards, game.prefixes(each)[len(state) - 1 :]))

    expected = [
        float(
            game.expected(
                logits,
                lambda each, state=state, value=value: (
                    (value - rest(each, state)) * (each.startswith(state) and each != state)
                ),
            )
        )
        for state, value in zip(game.histories, values.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("kind", [DPO, partial(KTO, desirable_weight=1.0)], ids=["dpo", "kto"])
def test_preferences_count_as_often_as_a_conversation_reaches_their_state(kind):
    """At the reference the states have equal gradients, times the probability of the state."""
    game = Game(2, rewards=lambda history: float(history.endswith("a")))
    problem = TableProblem(game, torch.zeros(len(game.histories), len(WORDS)))
    graphs = [game.graph(tree) for tree in game.ordered_trees(2)]
    found = -gradient_of(kind(problem), graphs)[0]
    assert (found[:, 0] / found[0, 0]).tolist() == pytest.approx([1, 1 / 2, 1 / 2])
    once = -gradient_of(kind(problem, shared_nodes="once"), graphs)[0]
    assert (once[:, 0] / once[0, 0]).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    "make",
    [*MEMBERS.values(), partial(ALGORITHMS["ppo"]), DPO, partial(KTO, threshold=0.0)],
    ids=[*MEMBERS, "ppo", "dpo", "kto"],
)
def test_minibatches_of_one_size_sum_to_the_gradient_of_the_experience(make):
    """A minibatch of late turns may not count as much as one of first turns."""
    game = GAMES["ragged3"]
    logits = random_logits(game)
    policy = game.policy(logits.double())
    generator = torch.Generator().manual_seed(0)
    graphs = [game.graph(game.sample(3, policy, generator)) for _ in range(12)]
    algorithm = make(TableProblem(game, logits))
    steps = algorithm.prepare([step for graph in graphs for step in algorithm.flatten(graph)])
    steps = list(steps)[: len(steps) // 4 * 4]
    batches = [steps, *(steps[start : start + 4] for start in range(0, len(steps), 4))]
    whole, *parts = [
        torch.autograd.grad(
            algorithm.step(algorithm.collate_fn(batch))[0], algorithm.problem.attacker
        )[0]
        for batch in batches
    ]
    assert torch.allclose(sum(parts) / len(parts), whole, atol=1e-6)


def test_weights_by_hand():
    """The first turn ended, the second has one child of one child and one of three."""
    game = Game(4)
    leaf = ("a", ())
    graph = game.graph([leaf, ("b", [("a", [leaf]), ("b", [leaf, leaf, leaf])])])
    twelfth = 1 / 12
    expected = [1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 4, twelfth, twelfth, twelfth]
    assert visit_probabilities(graph) == pytest.approx(expected)
    assert count_paths(graph) == [1, 4, 1, 3, 1, 1, 1, 1]


class Shared(Game):
    """The same policy in every state."""

    def policy(self, logits):
        return super().policy(logits.expand(len(self.histories), -1))


class Playable(TableProblem):
    """The table as a problem that an environment can play."""

    def rollout_prompt_with_attacker(self, contexts):
        chance = self.attacker.detach().softmax(-1).reshape(-1)
        drawn = torch.multinomial(chance, len(contexts), replacement=True)
        return [WORDS[each] for each in drawn.tolist()]

    def rollout_prompt_with_target(self, contexts):
        return ["" for _ in contexts]

    def reward(self, contexts, attacks, responses):
        return [self.game.rewards(c + a) for c, a in zip(contexts, attacks, strict=True)]

    def advance(self, context, attack, response):
        return str(context) + attack


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(["rloo", "reinforce", "grpo"], by_default=["grpo"]))
def test_a_first_turn_that_pays_is_learned_though_the_second_loses(name):
    """The first "a" earns 1, the second -0.6: 0.4 p(a) is expected, at most 0.4.

    With the weight of one per turn the second turn counted four times, and p(a) went to 0.
    """
    rewards = {2: 1.0, 3: -0.6}
    game = Shared(2, rewards=lambda h: rewards[len(h)] * h.endswith("a"))
    problem = Playable(game, torch.zeros(1, 2))
    scale = {"scale": "none"} if name == "grpo" else {}
    algorithm = ALGORITHMS[name](problem, credit="return_to_go", **scale)
    environment = ASTEnvironment(problem, [ROOT], tree_width=4, tree_depth=2)
    config = TrainingConfiguration(
        lr=0.3,
        optimizer="adam",
        batch_size=64,
        training_steps=30,
        num_episodes_per_experience=16,
        seed=0,
    )
    torch.manual_seed(0)
    Trainer(config, environment, algorithm).train()
    chance = float(problem.attacker.detach().softmax(-1)[0, 0])
    assert 0.4 * chance >= 0.39
