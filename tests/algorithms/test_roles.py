"""Rewards of a game of two roles are passed back, and compared, within one role only."""

import pytest

from astra_rl import Graph, Node
from astra_rl.algorithms import ALGORITHMS
from astra_rl.algorithms.policy_steps import episodes_of, groups_of, steps_of
from astra_rl.algorithms.weighting import visit_probabilities
from astra_rl.evaluation.records.from_graphs import Labels, record_tree
from astra_rl.methods.curriculum import UpperConfidence
from astra_rl.methods.environments import SelfPlayEnvironment
from astra_rl.testing import ScriptedModerator, ToyValueProblem
from astra_rl.training.callbacks.metrics import AttackMetrics
from astra_rl.training.harness import Harness


def zero_sum(*rewards, replies=2):
    """An episode of a game in which the defender loses what the attacker wins."""
    words = (" boom", " calm", " tree")
    return Graph(
        "c",
        [
            Node(
                "c",
                word,
                " song",
                reward,
                [
                    Node("c" + word, " rain" * (n + 1), "", -reward, role="defender")
                    for n in range(replies)
                ],
                reward_terms={"harm_response": reward},
            )
            for word, reward in zip(words, rewards, strict=False)
        ],
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rloo", {"credit": "return_to_go"}),
        ("rloo", {"credit": "trajectory"}),
        ("rloo", {"credit": "leaf"}),
        ("reinforce", {"credit": "max_backup"}),
        ("rloo", {"group": "episode"}),
        ("grpo", {"group": "prompt", "scale": "none"}),
    ],
)
def test_an_attack_is_credited_with_its_own_reward_not_with_the_defender_s(name, options, prepared):
    problem = ToyValueProblem()
    found = prepared(ALGORITHMS[name](problem, **options), zero_sum(1.0, 0.0))
    attacks = {step.attack: step.advantages[0] for step in found if step.context == "c"}
    assert attacks[" boom"] - attacks[" calm"] == pytest.approx(2.0 if name == "rloo" else 1.0)
    assert sum(attacks.values()) == pytest.approx(1.0 if name == "reinforce" else 0.0)


def test_gae_ends_an_attack_before_the_defender_s_turn(prepared):
    algorithm = ALGORITHMS["ppo"](ToyValueProblem(), gae_lambda=1.0)
    algorithm.estimator.normalise = False
    found = prepared(algorithm, zero_sum(1.0, 0.0))
    assert [step.advantages[-1] for step in found if step.context == "c"] == [1.0, 0.0]


def test_preferences_of_attacks_are_those_of_their_own_rewards():
    algorithm = ALGORITHMS["dpo"](ToyValueProblem(), credit="return_to_go")
    (pair,) = algorithm.flatten(zero_sum(0.25, 1.0))
    assert (pair.suffix_pos, pair.suffix_neg, pair.gap) == (" calm", " boom", 0.75)


def test_a_longer_game_passes_rewards_to_the_earlier_turns_of_the_same_role():
    second = Node("c2", " b", "", 4.0)
    defender = [Node("d", " r", "", -1.0, [second], role="defender"), Node("d", " s", "", -2.0)]
    defender[1].role = "defender"
    steps = steps_of(Graph("c", [Node("c", " a", "", 1.0, defender), Node("c", " e", "", 0.0)]))
    assert [step.attack for step in steps] == [" a", " e", " r", " s", " b"]
    assert sorted(episodes_of(steps)) == [([0, 1, 4], [None, None, 0]), ([2, 3], [None, None])]
    assert groups_of(steps, "siblings") == [[0, 1], [2, 3], [4]]
    assert groups_of(steps, "episode") == groups_of(steps, "prompt") == [[0, 1, 4], [2, 3]]


def test_the_record_of_a_game_has_attacks_only():
    labels = Labels(phase="training")
    found = list(
        record_tree(
            zero_sum(1.0, 0.0),
            labels,
            judge="m",
            score=lambda node: node.reward_terms["harm_response"],
            threshold=0.5,
        )
    )
    said = [[(turn.attack, turn.response) for turn in each.turns] for each in found]
    assert said == [[(" boom", " song")], [(" calm", " song")]]
    assert [each.score for each in found] == [1.0, 0.0]


def test_metrics_and_curricula_of_a_game_are_those_of_the_attacker():
    problem = ToyValueProblem(moderator=ScriptedModerator({"boom": 1.0}))
    environment = SelfPlayEnvironment(problem, ["Hello"], 4, replies=2)
    environment.curriculum = UpperConfidence()
    harness = Harness(environment, ALGORITHMS["rloo"](problem), 4, batch_size=64)
    list(harness.experience(0))
    rewards = [node.reward for graph in harness.graphs for node in graph.children]
    mean = sum(rewards) / len(rewards)
    assert mean > 0.1
    assert harness.experience_metrics()["reward"] == pytest.approx(mean)
    ((_, count, total, _),) = environment.curriculum.state_dict()["moments"]
    assert total / count == pytest.approx(mean)

    class Trainer:
        pass

    trainer, logs = Trainer(), {}
    trainer.harness = harness
    harness.graphs[0].children[0].attack = ""
    AttackMetrics().on_step_end(trainer, 1, logs)
    assert logs["empty_attacks"] == pytest.approx(1 / 16)


def test_continued_turns_take_over_the_weight_of_truncated_ones_of_other_sizes():
    def turn(*children, **options):
        return Node("c", " a", "", 0.0, list(children), **options)

    # The third turn of the level has the weight of both siblings of the other set.
    cut = turn(turn(truncated=True), turn(truncated=True))
    weights = visit_probabilities(Graph("c", [cut, turn(turn(turn(), turn()))]))
    assert weights == [0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 0.5]
