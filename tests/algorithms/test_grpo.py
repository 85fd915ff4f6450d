"""GRPO and its descendants: what is compared with what, and what is left out."""

import math

import pytest

from astra_rl import CISPO, DAPO, GRPO, GSPO, RLOO, DrGRPO, Graph, Harness
from astra_rl.algorithms.advantages import group_advantages
from astra_rl.errors import ConfigurationError
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ScriptedModerator, ToyProblem, graph_signature

nan = math.nan


def plain(**options):
    return GRPO(ToyProblem(), scale="none", **options)


def loss_of(algorithm, *steps):
    return algorithm.step(algorithm.collate_fn(list(steps)))[0].item()


@pytest.fixture
def two_turns(node):
    """Rewards 0 and 1 in the first turn; 10 and 20 after the first of them."""
    below = [node(" rain", 10.0, context="c boom"), node(" song", 20.0, context="c boom")]
    return Graph("c", [node(" boom", 0.0, *below), node(" calm", 1.0)])


def test_siblings_are_compared_with_each_other_and_not_with_other_groups(two_turns, advantages):
    assert advantages(plain(), two_turns) == [-0.5, 0.5, -5.0, 5.0]


def test_siblings_are_a_group_whoever_made_their_contexts(node, advantages):
    """Equal contexts that are different objects, as an environment of one's own makes them."""
    contexts = ["".join(["c", "d"]) for _ in range(2)]
    assert contexts[0] is not contexts[1]
    nodes = [node(" boom", 0.0, context=contexts[0]), node(" calm", 1.0, context=contexts[1])]
    algorithm = plain()
    assert advantages(algorithm, Graph("cd", nodes)) == [-0.5, 0.5]
    assert algorithm.estimator.baseline.value is None


def test_all_attacks_of_an_episode_may_be_a_group(two_turns, advantages):
    """Mean of 0, 1, 10, 20 is 7.75."""
    found = advantages(plain(group="episode"), two_turns)
    assert found == [-7.75, -6.75, 2.25, 12.25]


def test_episodes_that_open_with_the_same_prompt_may_be_a_group(siblings, advantages):
    """Prompts c, d, c of one attack each: 0 and 4 are compared, and 9 with the average of all."""
    graphs = [siblings(0.0), siblings(9.0, context="d"), siblings(4.0)]
    assert advantages(plain(group="prompt"), *graphs) == [-2.0, 0.0, 2.0]
    # as siblings they would all be alone: 13 / 3 is their average
    alone = advantages(plain(group="siblings"), *graphs)
    assert alone == pytest.approx([-13 / 3, 14 / 3, -1 / 3])


def test_credit_comes_before_comparison(two_turns, advantages):
    """Returns to go: 0 + 15 and 1 in the first turn."""
    assert advantages(plain(credit="return_to_go"), two_turns) == [7.0, -7.0, -5.0, 5.0]
    # 0 + 0.5 * 20 against 1
    found = advantages(plain(credit="max_backup", gamma=0.5), two_turns)
    assert found == [4.5, -4.5, -5.0, 5.0]


def test_ties_have_no_advantage(siblings, advantages):
    assert advantages(plain(), siblings(1.0, 1.0)) == [0.0, 0.0]


def test_one_sibling_whose_reward_is_known_is_compared_with_the_average(siblings, advantages):
    algorithm = plain()
    assert advantages(algorithm, siblings(nan, 1.0)) == [0.0]
    assert algorithm.estimator.baseline.value == 1.0


def test_without_siblings_rewards_are_compared_with_a_running_average(siblings, advantages):
    """decay 0.5; first experience: mean 1, so 0 and the average is 1; then 3 - 1 = 2."""
    algorithm = plain(baseline_decay=0.5)
    assert advantages(algorithm, siblings(1.0)) == [0.0]
    assert advantages(algorithm, siblings(3.0)) == [2.0]
    assert algorithm.estimator.baseline.value == 2.0


def test_the_running_average_survives_a_restart(siblings, advantages):
    algorithm, twin = plain(), plain()
    advantages(algorithm, siblings(1.0))
    twin.load_state_dict(algorithm.state_dict())
    assert advantages(twin, siblings(5.0)) == advantages(algorithm, siblings(5.0)) == [4.0]


def test_advantages_may_be_scaled_by_group_by_batch_or_not(siblings, advantages):
    graphs = [siblings(0.0, 4.0), siblings(0.0, 0.2, context="d")]
    by_group = advantages(GRPO(ToyProblem(), scale="group"), *graphs)
    assert by_group == pytest.approx([*group_advantages([0.0, 4.0]), *group_advantages([0.0, 0.2])])
    assert abs(by_group[0]) == pytest.approx(abs(by_group[2]), rel=1e-2)
    by_batch = advantages(GRPO(ToyProblem(), scale="batch"), *graphs)
    assert by_batch[0] / by_batch[2] == pytest.approx(20)
    assert math.fsum(value**2 for value in by_batch) / 4 == pytest.approx(1, rel=1e-3)


def test_leave_one_out_compares_with_the_others_only(siblings, advantages):
    """Rewards 0, 3, 6: 0 - 4.5, 3 - 3, 6 - 1.5."""
    assert advantages(RLOO(ToyProblem()), siblings(0.0, 3.0, 6.0)) == [-4.5, 0, 4.5]


def test_the_share_of_groups_without_signal_is_logged(siblings, advantages):
    """Of three groups of known rewards one ties; a group of one, or unknown, is none."""
    algorithm = GRPO(ToyProblem(), kl_in_reward=0.1)
    graphs = [siblings(1.0, 1.0), siblings(0.0, 1.0), siblings(0.0, 1.0, nan), siblings(1.0)]
    advantages(algorithm, *graphs, siblings(nan, 1.0))
    assert algorithm.experience_metrics()["frac_reward_zero_std"] == pytest.approx(1 / 3)
    advantages(algorithm, siblings(1.0))
    assert "frac_reward_zero_std" not in algorithm.experience_metrics()


# How each weighs tokens: an attack of 3 tokens and advantage 2, one of 1 token and advantage -1.


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (GRPO, -(2 - 1) / 2),  # means of the attacks
        (lambda p: GRPO(p, reduce="token"), -(6 - 1) / 4),  # of the tokens
        (DAPO, -(6 - 1) / 4),
        (lambda p: DrGRPO(p, max_tokens=5), -(6 - 1) / (2 * 5)),  # sums over a constant
        (GSPO, -(2 - 1) / 2),
        (RLOO, -(2 - 1) / 2),
    ],
)
def test_how_each_algorithm_weighs_tokens(make, expected, step_like):
    steps = step_like(" boom boom boom", 2.0), step_like(" calm", -1.0)
    assert loss_of(make(ToyProblem()), *steps) == pytest.approx(expected)


def test_cispo_weighs_the_log_probability(step_like):
    step = step_like(" boom", 2.0, shift=1.0)  # ratio e
    logprob = step.old_logprobs[0] + 1.0
    assert loss_of(CISPO(ToyProblem()), step) == pytest.approx(-math.e * 2 * logprob, rel=1e-5)
    bounded = CISPO(ToyProblem(), max_ratio=2.0)
    loss, logs = bounded.step(bounded.collate_fn([step]))
    assert loss.item() == pytest.approx(-2 * 2 * logprob, rel=1e-5)
    assert logs["cispo_clip_ratio"] == 1


@pytest.mark.parametrize(
    ("make", "ratio", "bound"),
    [
        (GRPO, math.exp(0.5), 1.2),
        (DAPO, math.exp(0.5), 1.28),
        (GSPO, math.exp(0.5), 1.0004),
        (RLOO, math.e, 1.2),
    ],
)
def test_each_algorithm_s_ratio_and_its_bound(make, ratio, bound, step_like):
    """Each of two tokens is 0.5 nats likelier than it was: e of the whole attack."""
    step = step_like(" boom calm", 1.0, shift=0.5)
    assert loss_of(make(ToyProblem()), step) == pytest.approx(-bound, rel=1e-5)
    free = make(ToyProblem(), clip_high=9.0)
    loss, logs = free.step(free.collate_fn([step]))
    assert loss.item() == pytest.approx(-ratio, rel=1e-5)
    assert logs["ratio/max"] == pytest.approx(ratio, rel=1e-5)


# Dynamic sampling.


class Rare(ToyProblem):
    """Half of the openings never fail."""

    def __init__(self):
        super().__init__(ScriptedModerator({"boom": 1.0}))

    def reward(self, contexts, attacks, responses):
        scores = self.moderator.moderate(responses)
        return [
            0.0 if context.startswith("safe") else score
            for context, score in zip(contexts, scores, strict=True)
        ]


def harness_of(episodes=6, **options):
    problem = Rare()
    environment = ASTEnvironment(problem, ["safe", "weak"], tree_width=4, tree_depth=1)
    return Harness(environment, DAPO(problem, **options), episodes, batch_size=1000)


def test_groups_without_signal_are_replaced_by_others():
    harness = harness_of(refill_rounds=20)
    (batch,) = harness.experience(0)
    assert len(batch) == 6 * 4
    assert set(batch.contexts) == {"weak"}
    assert len(harness.graphs) > 6
    metrics = harness.experience_metrics()
    assert metrics["refill/kept"] == 6 / len(harness.graphs)
    assert metrics["frac_reward_zero_std"] == pytest.approx(1 - metrics["refill/kept"])
    rewards = [node.reward for graph in harness.graphs for node in graph.nodes()]
    assert metrics["reward"] == pytest.approx(sum(rewards) / len(rewards)), "of all played"


def test_refilling_ends_after_so_many_rounds():
    harness = harness_of(refill_rounds=0)
    (batch,) = harness.experience(0)
    assert len(harness.graphs) == 6
    assert 0 < len(batch) < 6 * 4
    problem = ToyProblem(ScriptedModerator({}, default=0.5))
    hopeless = Harness(
        ASTEnvironment(problem, ["one"], tree_width=2), DAPO(problem, refill_rounds=2), 4
    )
    assert list(hopeless.experience(0)) == []
    assert len(hopeless.graphs) == 3 * 4


def test_refilled_experiences_repeat_with_their_seed():
    first, again, other = (harness_of() for _ in range(3))
    for harness, seed in ((first, 0), (again, 0), (other, 1)):
        harness.experience(seed)
    signatures = [
        [graph_signature(graph) for graph in harness.graphs] for harness in (first, again, other)
    ]
    assert signatures[0] == signatures[1] != signatures[2]
    assert len({str(each) for each in signatures[0]}) == len(signatures[0]), "no episode twice"


def test_other_algorithms_play_once():
    problem = Rare()
    environment = ASTEnvironment(problem, ["safe", "weak"], tree_width=4, tree_depth=1)
    harness = Harness(environment, GRPO(problem), 6, batch_size=1000)
    (batch,) = harness.experience(0)
    assert len(harness.graphs) == 6
    assert len(batch) == 6 * 4


def test_an_episode_with_one_teaching_group_is_kept_without_its_dead_ones(node, prepared):
    below = [node(" rain", 1.0, context="c boom"), node(" song", 1.0, context="c boom")]
    graph = Graph("c", [node(" boom", 0.0, *below), node(" calm", 1.0)])
    algorithm = DAPO(ToyProblem())
    assert algorithm.collector.informative([graph]) == [graph]
    assert [step.attack for step in prepared(algorithm, graph)] == [" boom", " calm"]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (GRPO, {"clip_low": 0}),
        (GRPO, {"clip_high": -0.1}),
        (GRPO, {"clip_high": nan}),
        (GRPO, {"scale": "std"}),
        (GRPO, {"reduce": "rows"}),
        (GRPO, {"baseline_decay": 1.0}),
        (GRPO, {"credit": "all"}),
        (GRPO, {"gamma": 2.0}),
        (GRPO, {"group": "batch"}),
        (DrGRPO, {"max_tokens": 0}),
        (DAPO, {"refill_rounds": -1}),
        (CISPO, {"max_ratio": 1.0}),
    ],
)
def test_values_out_of_range_are_refused(make, options):
    ((name, value),) = options.items()
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}"):
        make(ToyProblem(), **options)
