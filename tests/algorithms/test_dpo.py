import copy
import math
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astra_rl import CDPO, DPO, IPO, Graph, Hinge, MarginIPO, Node, SimPO, Utterance
from astra_rl.algorithms.dpo import DPOStep
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem, check_algorithm

nan = math.nan
KINDS = [DPO, CDPO, IPO, MarginIPO, Hinge, SimPO]


def node(attack, reward, *children, context="c"):
    return Node(context, attack, "r", reward, list(children))


def pairs(*children):
    steps = DPO(ToyProblem()).flatten(Graph("c", list(children)))
    return [(step.suffix_pos, step.suffix_neg) for step in steps]


def test_the_best_sibling_is_chosen_and_the_worst_rejected():
    assert pairs(node("mid", 0.5), node("best", 1.0), node("worst", 0.0)) == [("best", "worst")]


def test_every_set_of_siblings_makes_a_pair_in_its_own_context():
    below = [node("x", 0.0, context="c2"), node("y", 1.0, context="c2")]
    graph = Graph("c", [node("a", 1.0, *below), node("b", 0.0)])
    assert DPO(ToyProblem()).flatten(graph) == [
        DPOStep("c", "a", "b", weight=1 / 2),
        DPOStep("c2", "y", "x", weight=1 / 4),
    ]


def test_a_node_with_one_child_does_not_hide_the_tree_below_it():
    assert pairs(node("only", 1.0, node("x", 0.0), node("y", 1.0))) == [("y", "x")]


@pytest.mark.parametrize("rewards", [(0.5, 0.5), (0.5, 0.5 + 1e-9), (-1.0, -1.0, -1.0), (0.5,), ()])
def test_ties_make_no_pair(rewards):
    assert pairs(*(node(str(index), reward) for index, reward in enumerate(rewards))) == []


def test_two_ways_to_say_the_same_make_no_pair():
    assert pairs(node("same", 1.0), node("same", 0.0)) == []


def test_missing_rewards_make_no_pair_and_do_not_spoil_the_others():
    assert pairs(node("a", nan), node("b", 1.0)) == []
    assert pairs(node("a", nan), node("b", nan)) == []
    assert pairs(node("a", nan), node("b", 1.0), node("c", 0.0), node("d", math.inf)) == [
        ("b", "c")
    ]


def test_below_a_missing_reward_the_tree_still_teaches():
    assert pairs(node("a", nan, node("x", 0.0), node("y", 1.0)), node("b", nan)) == [("y", "x")]


def pairs_of(options, *children):
    steps = DPO(ToyProblem(), **options).flatten(Graph("c", list(children)))
    return [(step.suffix_pos, step.suffix_neg, round(step.gap, 6)) for step in steps]


def test_all_pairs_of_siblings_may_be_learned_from():
    children = node("b", 0.5), node("a", 0.9), node("c", 0.5), node("d", nan), node("e", 0.0)
    assert pairs_of({"pairs": "all"}, *children) == [
        ("a", "b", 0.4),
        ("a", "c", 0.4),
        ("a", "e", 0.9),
        ("b", "e", 0.5),
        ("c", "e", 0.5),
    ]


def test_pairs_closer_than_the_gap_are_dropped():
    children = node("a", 0.9), node("b", 0.5), node("c", 0.0)
    assert pairs_of({"pairs": "all", "min_gap": 0.45}, *children) == [
        ("a", "c", 0.9),
        ("b", "c", 0.5),
    ]
    assert pairs_of({"min_gap": 0.95}, *children) == []


def test_a_gap_that_is_met_exactly_is_enough():
    """In floating point 0.3 - 0.1 is a little less than 0.2."""
    assert pairs_of({"min_gap": 0.2}, node("a", 0.3), node("b", 0.1)) == [("a", "b", 0.2)]


def test_a_function_of_ones_own_makes_the_pairs():
    def neighbours(siblings):
        return pairwise(siblings)

    children = node("a", 0.9), node("b", 0.5), node("c", 0.0)
    assert pairs_of({"pairs": neighbours}, *children) == [("a", "b", 0.4), ("b", "c", 0.5)]


def test_a_turn_may_be_preferred_for_what_it_leads_to():
    """With the best continuation at 0.9: 0.1 + 0.9 * 1.0 against 0.5."""
    good, bad = node("good", 0.1, node("x", 1.0), node("y", 0.0)), node("bad", 0.5)
    assert pairs_of({}, good, bad)[0] == ("bad", "good", 0.4)
    assert pairs_of({"credit": "max_backup"}, good, bad)[0] == ("good", "bad", 0.5)


@given(st.lists(st.one_of(st.just(nan), st.integers(0, 3).map(float)), max_size=6))
def test_all_pairs_are_those_of_the_definition(rewards):
    children = [node(str(index), reward) for index, reward in enumerate(rewards)]
    expected = {
        (str(i), str(j)) if rewards[i] > rewards[j] else (str(j), str(i))
        for i, j in combinations(range(len(rewards)), 2)
        if abs(rewards[i] - rewards[j]) > 0  # false for NaN
    }
    found = pairs_of({"pairs": "all"}, *children)
    assert {(better, worse) for better, worse, _ in found} == expected
    assert len(found) == len(expected)


def test_pairs_and_ties_of_an_experience_are_counted():
    algorithm = DPO(ToyProblem(), pairs="all")
    rewards = {" boom": 1.0, " calm": 0.0, " tree": 0.0, " rain": nan}
    graph = Graph("c", [node(attack, reward) for attack, reward in rewards.items()])
    algorithm.prepare(algorithm.flatten(graph))
    assert algorithm.experience_metrics() == {
        "pairs": 2.0,
        "pairs/tied": 1.0,
        "pairs/missing": 1.0,
    }
    algorithm.prepare([])
    assert algorithm.experience_metrics() == {
        "pairs": 0.0,
        "pairs/tied": 0.0,
        "pairs/missing": 0.0,
    }


def environment(problem=None, width=3):
    return ASTEnvironment(problem or ToyProblem(), ["one", "two"], tree_width=width, tree_depth=2)


def steps_of(algorithm, episodes=6):
    graphs = environment(algorithm.problem).rollouts(range(episodes))
    return algorithm.prepare([step for graph in graphs for step in algorithm.flatten(graph)])


def test_the_loss_of_an_untrained_attacker_is_log_two():
    """The attacker equals its reference, so every margin over it is zero."""
    algorithm = DPO(ToyProblem())
    loss, logs = algorithm.step(algorithm.collate_fn(steps_of(algorithm)))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert logs["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert logs["rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_the_loss_is_that_of_plain_python_on_the_table_of_logits():
    """The attacker's logits are the reference's plus a gain per word. Both texts have two words, so
    the normalisers cancel: the margin over the reference is gain(calm) - gain(tree), half of it for
    means per token."""
    problem = ToyProblem()
    gains = torch.linspace(-1, 1, 6)
    with torch.no_grad():
        problem.attacker += gains
    gain = dict(zip(problem.words, gains.tolist(), strict=True))
    margin = gain["calm"] - gain["tree"]
    texts = " boom calm", " tree boom"
    assert loss_of(DPO(problem, beta=0.3), *texts) == pytest.approx(
        math.log1p(math.exp(-0.3 * margin)), rel=1e-5
    )
    assert loss_of(IPO(problem, beta=0.3), *texts) == pytest.approx(
        (margin / 2 - 1 / 0.6) ** 2, rel=1e-5
    )


@pytest.mark.parametrize(
    ("algorithm", "loss"),
    [
        (lambda p: CDPO(p, beta=0.3, label_smoothing=0.2), lambda m: cdpo(0.3 * m, 0.2)),
        (lambda p: Hinge(p, beta=0.3), lambda m: max(0, 1 - 0.3 * m)),
        (lambda p: Hinge(p, beta=30), lambda m: max(0, 1 - 30 * m)),
        (lambda p: MarginIPO(p, beta=0.3), lambda m: (m - 0.25 / 0.6) ** 2),
        (lambda p: MarginIPO(p, beta=0.3, reduce="mean"), lambda m: (m / 2 - 0.25 / 0.6) ** 2),
        (lambda p: IPO(p, beta=0.3, reduce="sum"), lambda m: (m - 1 / 0.6) ** 2),
    ],
)
def test_their_losses_are_those_of_plain_python(algorithm, loss):
    problem = ToyProblem()
    gains = torch.linspace(-1, 1, 6)
    with torch.no_grad():
        problem.attacker += gains
    gain = dict(zip(problem.words, gains.tolist(), strict=True))
    margin = gain["calm"] - gain["tree"]
    found = loss_of(algorithm(problem), " boom calm", " tree boom", gap=0.25)
    assert found == pytest.approx(loss(margin), rel=1e-5)


def cdpo(margin, smoothing):
    """Cross-entropy with a label that is right with probability 1 - smoothing."""
    right = 1 / (1 + math.exp(-margin))
    return -(1 - smoothing) * math.log(right) - smoothing * math.log(1 - right)


def minimised(make, words=(" calm", " boom", " tree", " rain", " song")):
    """Pairs of all attacks of one word, with rewards of 0.0, 0.1 and so on, learned to the end."""
    problem = ToyProblem()
    algorithm = make(problem)
    graph = Graph("c", [node(word, 0.1 * index) for index, word in enumerate(words)])
    batch = algorithm.collate_fn(algorithm.prepare(algorithm.flatten(graph)))
    optimizer = torch.optim.LBFGS(problem.parameters(), max_iter=200, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        loss, _ = algorithm.step(batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        ratios = problem._logprobs(problem.attacker, words) - problem._logprobs(
            problem.baseline, words
        )
    return ratios[:, 0].tolist()


def test_margin_ipo_ends_at_the_reference_reweighted_by_the_reward():
    """log pi - log ref = reward / (2 beta) + constant: 0.1 / 0.4 from each attack to the next."""
    ratios = minimised(lambda problem: MarginIPO(problem, beta=0.2, pairs="all"))
    differences = [after - before for before, after in pairwise(ratios)]
    assert differences == pytest.approx([0.25] * 4, abs=1e-3)


def test_conservative_dpo_ends_where_preferences_are_as_sure_as_the_labels():
    """sigmoid(beta h) = 1 - smoothing, so h = log(0.8 / 0.2) / beta."""
    words = (" calm", " boom")
    low, high = minimised(lambda p: CDPO(p, beta=0.5, label_smoothing=0.2), words)
    assert high - low == pytest.approx(math.log(4) / 0.5, abs=1e-3)


def test_ipo_ends_at_its_margin_and_hinge_no_further_than_its_own():
    words = (" calm", " boom")
    low, high = minimised(lambda p: IPO(p, beta=0.25), words)
    assert high - low == pytest.approx(1 / 0.5, abs=1e-3)
    problem = ToyProblem()
    with torch.no_grad():  # told apart by more than 1 / beta
        problem.attacker[problem.words.index("boom")] += 5
    loss, _ = Hinge(problem, beta=0.25).step(
        Hinge(problem, beta=0.25).collate_fn([DPOStep("c", " boom", " calm")])
    )
    loss.backward()
    assert loss.item() == 0
    assert not problem.attacker.grad.any()


def test_simpo_compares_means_per_token_without_a_reference():
    problem = ToyProblem()
    table = dict(zip(problem.words, problem.attacker.log_softmax(0).tolist(), strict=True))
    margin = (table["boom"] + table["calm"]) / 2 - table["tree"]
    loss = loss_of(SimPO(problem, beta=2.0, margin=0.7), " boom calm", " tree")
    assert loss == pytest.approx(math.log1p(math.exp(0.7 - 2.0 * margin)), rel=1e-5)


def loss_of(algorithm, chosen, rejected, gap=1.0):
    steps = algorithm.prepare([DPOStep("c", chosen, rejected, gap)])
    return algorithm.step(algorithm.collate_fn(steps))[0].item()


def test_a_batch_that_was_not_prepared_has_the_same_loss():
    algorithm = DPO(ToyProblem())
    with torch.no_grad():
        algorithm.problem.attacker += torch.arange(6) * 0.1
    prepared = steps_of(algorithm)
    bare = [replace(step, reference=None) for step in prepared]
    losses = [algorithm.step(algorithm.collate_fn(steps))[0] for steps in (prepared, bare)]
    torch.testing.assert_close(*losses)


class Counted(ToyProblem):
    """A toy that counts calls, and whose frozen tables could receive gradients."""

    def __init__(self):
        super().__init__()
        self.calls = {"baseline": 0, "attacker": 0}
        self.baseline.requires_grad_(True)
        self.target.requires_grad_(True)

    def get_baseline_logprobs(self, contexts, continuations):
        self.calls["baseline"] += 1
        return super().get_baseline_logprobs(contexts, continuations)

    def get_attacker_logprobs(self, contexts, continuations):
        self.calls["attacker"] += 1
        return super().get_attacker_logprobs(contexts, continuations)


@pytest.mark.parametrize("kind", [DPO, IPO])
def test_the_reference_is_run_once_per_experience_and_never_gets_a_gradient(kind):
    algorithm = kind(Counted())
    steps = steps_of(algorithm)
    for step in steps:
        algorithm.step(algorithm.collate_fn([step]))[0].backward()
    assert algorithm.problem.calls == {"baseline": 1, "attacker": len(steps)}
    assert algorithm.problem.baseline.grad is None
    assert algorithm.problem.target.grad is None
    assert algorithm.problem.attacker.grad.abs().sum() > 0


def test_simpo_never_runs_the_reference():
    algorithm = SimPO(Counted())
    algorithm.step(algorithm.collate_fn(steps_of(algorithm)))
    assert algorithm.problem.calls["baseline"] == 0


def test_an_attack_of_several_pairs_is_scored_once_under_the_reference():
    """Four siblings make six pairs, which name twelve attacks."""
    algorithm = DPO(Counted(), pairs="all")
    scored = []
    inner = algorithm.problem.get_baseline_logprobs
    algorithm.problem.get_baseline_logprobs = lambda contexts, attacks: (
        scored.extend(zip(contexts, attacks, strict=True)) or inner(contexts, attacks)
    )
    words = [" boom", " calm", " tree rain", " song"]
    graphs = [
        Graph(c, [node(w, float(i), context=c) for i, w in enumerate(words)]) for c in ("a", "b")
    ]
    steps = algorithm.prepare([step for graph in graphs for step in algorithm.flatten(graph)])
    assert sorted(scored) == sorted((c, w) for c in ("a", "b") for w in words)
    for step in steps:
        texts = step.suffix_pos, step.suffix_neg
        alone = inner(["c", "c"], list(texts)).sum(dim=1)
        assert step.reference[0] == pytest.approx(tuple(alone.tolist()), rel=1e-6)


def test_no_steps_need_no_reference():
    algorithm = DPO(Counted())
    assert list(algorithm.prepare([])) == []
    assert algorithm.problem.calls["baseline"] == 0


def test_repeating_all_tokens_changes_ipo_of_sums_and_not_of_means():
    problem = ToyProblem()
    with torch.no_grad():
        problem.attacker += torch.arange(6) * 0.3
    once, twice = (" boom", " rain"), (" boom boom", " rain rain")
    assert loss_of(IPO(problem), *once) == pytest.approx(loss_of(IPO(problem), *twice), rel=1e-6)
    summed = IPO(problem, reduce="sum")
    assert abs(loss_of(summed, *once) - loss_of(summed, *twice)) > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_neither_padding_nor_row_order_nor_micro_batches_change_anything(kind, reduce):
    graphs = environment().rollouts(range(6))
    for graph in graphs:  # texts of different lengths
        for index, each in enumerate(graph.nodes()):
            each.attack += " rain" * (index % 3)
    algorithm = kind(ToyProblem(), reduce=reduce)
    with torch.no_grad():
        algorithm.problem.attacker += torch.arange(6) * 0.2
    check_algorithm(algorithm, graphs)


class OtherVocabulary(ToyProblem):
    """The attacks remember three tokens, the baseline reads them as two."""

    def get_attacker_logprobs(self, contexts, continuations):
        scored = super().get_attacker_logprobs(contexts, continuations)
        return torch.cat([scored, scored[:, :1]], dim=1)


def test_a_baseline_of_another_vocabulary_is_averaged_over_its_own_tokens():
    """Reference margin: mean over 1 word minus mean over 2, though each attack remembers 3 ids."""
    problem = OtherVocabulary()
    one = Utterance(" boom", token_ids=[1, 2, 3])
    two = Utterance(" rain calm", token_ids=[4, 5, 6])
    algorithm = IPO(problem)
    (step,) = algorithm.prepare([DPOStep("c", one, two)])
    table = dict(zip(problem.words, problem.baseline.log_softmax(0).tolist(), strict=True))
    sums, means = step.reference
    other = table["rain"] + table["calm"]
    assert sums == pytest.approx((table["boom"], other), rel=1e-5)
    assert means == pytest.approx((table["boom"], other / 2), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0},
        {"beta": -1.0},
        {"beta": nan},
        {"beta": math.inf},
        {"beta": "0.1"},
        {"beta": True},
        {"pairs": None},
        {"min_gap": math.inf},
        {"reduce": "max"},
        {"pairs": "bestworst"},
        {"min_gap": -0.1},
        {"min_gap": nan},
        {"credit": "turns"},
        {"gamma": 1.5},
    ],
)
def test_values_out_of_range_are_refused(options):
    for kind in KINDS:
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            kind(ToyProblem(), **options)


def test_what_only_one_of_them_takes_is_checked_too():
    for smoothing in (-0.1, 0.5, nan):
        with pytest.raises(ConfigurationError, match="label_smoothing"):
            CDPO(ToyProblem(), label_smoothing=smoothing)
    for margin in (-0.1, math.inf, nan):
        with pytest.raises(ConfigurationError, match="margin"):
            SimPO(ToyProblem(), margin=margin)


def test_a_problem_without_gradients_is_named():
    class Detached(ToyProblem):
        def get_attacker_logprobs(self, contexts, continuations):
            return super().get_attacker_logprobs(contexts, continuations).detach()

    algorithm = DPO(Detached())
    with pytest.raises(ContractError, match=r"DPO returned a loss .*without detaching"):
        algorithm.step(algorithm.collate_fn([DPOStep("c", " boom", " calm")]))


def test_a_step_changes_neither_batch_nor_weights():
    algorithm = DPO(ToyProblem())
    batch = algorithm.collate_fn(steps_of(algorithm))
    before, weights = copy.deepcopy(batch), algorithm.problem.attacker.detach().clone()
    algorithm.step(batch)
    assert batch == before
    assert torch.equal(algorithm.problem.attacker, weights)
