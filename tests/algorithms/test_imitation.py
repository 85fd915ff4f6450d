"""Supervised training: on the best attacks so far, and on given ones."""

import json
import math
from pathlib import Path

import pytest
import torch

from astra_rl import (
    Conversation,
    ExpertIteration,
    Graph,
    Node,
    Trainer,
    TrainingConfiguration,
    WarmStart,
)
from astra_rl.algorithms.imitation import ImitationStep
from astra_rl.core.attack_files import read_attacks
from astra_rl.core.serialization import to_record
from astra_rl.errors import ConfigurationError
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem, check_algorithm, learn, letter_game

nan = math.nan


def graph(*attacks, context="c"):
    return Graph(context, [Node(context, attack, "r", reward, []) for attack, reward in attacks])


def prepared(algorithm, *graphs):
    return list(algorithm.prepare([step for each in graphs for step in algorithm.flatten(each)]))


def test_the_loss_is_the_mean_over_attacks_of_their_mean_per_token():
    problem = ToyProblem()
    algorithm = ExpertIteration(problem, best=2, min_reward=0.0)
    steps = prepared(algorithm, graph((" boom calm", 1.0), (" tree", 0.5)))
    table = dict(zip(problem.words, problem.attacker.log_softmax(0).tolist(), strict=True))
    expected = -((table["boom"] + table["calm"]) / 2 + table["tree"]) / 2
    loss, logs = algorithm.step(algorithm.collate_fn(steps))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert logs["nll"] == pytest.approx(
        -(table["boom"] + table["calm"] + table["tree"]) / 3, rel=1e-5
    )


def test_the_best_siblings_that_are_good_enough_are_learned():
    children = (" boom", 0.9), (" tree", 0.6), (" calm", 0.1), (" rain", nan)
    steps = prepared(ExpertIteration(ToyProblem(), best=2, min_reward=0.5), graph(*children))
    assert [step.attack for step in steps] == [" boom", " tree"]
    (step,) = prepared(ExpertIteration(ToyProblem(), min_reward=0.5), graph(*children))
    assert step.attack == " boom"
    assert prepared(ExpertIteration(ToyProblem(), min_reward=0.95), graph(*children)) == []


def test_without_a_bar_better_than_the_mean_is_good_enough():
    algorithm = ExpertIteration(ToyProblem())
    steps = prepared(algorithm, graph((" boom", 0.9)), graph((" tree", 0.1)))
    assert [step.attack for step in steps] == [" boom"]


def test_what_worked_before_is_learned_again():
    algorithm = ExpertIteration(ToyProblem(), min_reward=0.0, replay_share=0.5)
    prepared(algorithm, graph((" boom", 0.9)))
    steps = prepared(algorithm, graph((" tree", 0.2)))
    assert [step.attack for step in steps] == [" tree", " boom"]
    assert algorithm.experience_metrics() == {
        "chosen": 1.0,
        "replay/size": 2.0,
        "replay/used": 1.0,
    }


def test_what_worked_before_is_rehearsed_although_nothing_worked():
    algorithm = ExpertIteration(ToyProblem(), min_reward=0.5, rehearse=3)
    for attack in (" boom", " tree"):
        prepared(algorithm, graph((attack, 0.9)))
    assert {step.attack for step in prepared(algorithm, graph((" rain", 0.0)))} == {
        " boom",
        " tree",
    }
    many = graph(*((f" song{number}", 0.9) for number in range(4)))
    algorithm.best = 4
    assert len(prepared(algorithm, many)) == 4 + 2  # half of them replayed, as far as known
    assert len(prepared(algorithm, graph((" rain", 0.0)))) == 3


def test_the_untrained_attacker_plays_its_share():
    """With a share of 1 a trained attacker's experience has the attacks of an untrained one."""
    trained, untrained = letter_game(), letter_game()
    learn(lambda problem: ExpertIteration(problem, best=2), trained, steps=20)
    explores = ExpertIteration(trained.problem, untrained_share=1.0).collector
    plain = ExpertIteration(trained.problem).collector
    fresh = ExpertIteration(untrained.problem).collector

    def attacks(collector, environment):
        graphs = collector.collect(environment, 7, 4).kept
        return [node.attack for graph in graphs for node in graph.nodes()]

    assert attacks(explores, trained) == attacks(fresh, untrained)
    assert attacks(plain, trained) != attacks(fresh, untrained)  # and it is trained again


@pytest.mark.parametrize("name", ["untrained_share", "tempered_share"])
def test_a_problem_that_cannot_explore_is_named_before_it_has_to(name):
    with pytest.raises(ConfigurationError, match=f"ToyProblem cannot.*{name} to 0"):
        ExpertIteration(ToyProblem(), **{name: 0.01})


def test_expert_iteration_goes_on_from_json_as_if_nothing_had_happened():
    algorithm, other = (ExpertIteration(ToyProblem(), min_reward=0.0) for _ in range(2))
    for attack in (" boom", " tree", " rain"):
        prepared(algorithm, graph((attack, 0.5)))
    other.load_state_dict(json.loads(json.dumps(algorithm.state_dict())))
    again = graph((" song", 0.5)), graph((" calm", 0.5), context="d")
    assert prepared(algorithm, *again) == prepared(other, *again)


def test_neither_padding_nor_row_order_nor_micro_batches_change_anything():
    graphs = ASTEnvironment(ToyProblem(), ["one"], tree_width=3, tree_depth=2).rollouts(range(4))
    for each in graphs:
        for index, node in enumerate(each.nodes()):
            node.attack += " rain" * (index % 3)
    check_algorithm(ExpertIteration(ToyProblem(), best=3), graphs)
    check_algorithm(WarmStart(ToyProblem(), attacks=[" boom", " tree"]), graphs)


def write(path: Path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_warm_start_deals_out_every_attack_of_a_file_before_any_twice(tmp_path):
    (tmp_path / "attacks.txt").write_text(" boom\n\n calm\n tree\n", encoding="utf-8")
    algorithm = WarmStart(ToyProblem(), attacks=str(tmp_path / "attacks.txt"))
    environment = ASTEnvironment(algorithm.problem, ["one", "two"])
    dealt = [algorithm.collector.collect(environment, seed, 3).kept for seed in range(2)]
    for graphs in dealt:
        attacks = [node.attack for graph in graphs for node in graph.nodes()]
        assert sorted(attacks) == [" boom", " calm", " tree"]
        assert {graph.context for graph in graphs} <= {"one", "two"}


def test_attacks_of_json_lines_keep_their_contexts(tmp_path):
    context = Conversation("hi", brief="ask")
    file = write(
        tmp_path / "a.jsonl",
        {"attack": " boom", "context": to_record(context), "reward": 0.9},
        {"attack": " calm"},
    )
    first, second = read_attacks(file)
    assert first == ImitationStep(context, " boom", 0.9)
    assert first.context.brief == "ask"
    assert (second.context, second.attack) == ("", " calm")
    assert math.isnan(second.reward)


def test_only_attacks_that_are_good_enough_are_taken(tmp_path):
    rows = [
        {"attack": " boom", "reward": 0.9},
        {"attack": " calm", "reward": 0.1},
        {"attack": " x"},
    ]
    file = write(tmp_path / "a.jsonl", *rows)
    algorithm = WarmStart(ToyProblem(), attacks=file, min_reward=0.5)
    assert [step.attack for step in algorithm.collector.steps] == [" boom"]
    with pytest.raises(ConfigurationError, match="none of 3 is left"):
        WarmStart(ToyProblem(), attacks=file, min_reward=0.95)


def test_what_the_baseline_finds_too_unlikely_is_not_learned():
    """Of the smoothing of Lee et al.: each word has about log(1/6), so two have about -3.6."""
    problem = ToyProblem()
    algorithm = WarmStart(
        problem, attacks=[" boom", " boom calm", " boom calm nice"], min_logprob=-4.0
    )
    environment = ASTEnvironment(problem, ["c"])
    steps = prepared(algorithm, *algorithm.collector.collect(environment, 0, 3).kept)
    assert sorted(step.attack for step in steps) == [" boom", " boom calm"]
    assert algorithm.experience_metrics() == {"unlikely": pytest.approx(1 / 3)}


def test_without_that_bound_the_baseline_is_never_run():
    problem = ToyProblem()
    problem.get_baseline_logprobs = None
    steps = prepared(WarmStart(problem, attacks=[" boom"]), graph((" boom", nan)))
    assert [step.attack for step in steps] == [" boom"]


def test_of_attacks_that_say_the_same_the_best_is_taken_if_asked_for():
    given = [
        ImitationStep("c", " Boom", 0.2),
        ImitationStep("c", "boom ", 0.9),
        ImitationStep("d", " boom", nan),
        ImitationStep("c", " boom", 0.5),
        ImitationStep("c", " calm", nan),
    ]
    kept = WarmStart(ToyProblem(), attacks=given, distinct=True).collector.steps
    assert [(step.context, step.attack) for step in kept] == [
        ("c", "boom "),
        ("d", " boom"),
        ("c", " calm"),
    ]
    assert len(WarmStart(ToyProblem(), attacks=given).collector.steps) == 5


@pytest.mark.parametrize(
    "line", ["{", "[1]", '"text"', "{}", '{"attack": 3}', '{"attack": "a", "reward": "b"}']
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"attack": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="line 2"):
        read_attacks(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot read the attacks .*nothing\.txt"):
        WarmStart(ToyProblem(), attacks=str(tmp_path / "nothing.txt"))


def test_a_warm_start_learns_what_it_is_given_and_asks_no_target():
    problem = ToyProblem()

    def never(contexts):
        raise AssertionError("the target was asked")

    problem.rollout_prompt_with_target = never
    config = TrainingConfiguration(
        lr=0.2, training_steps=40, num_episodes_per_experience=4, seed=0, optimizer="adam"
    )
    algorithm = WarmStart(problem, attacks=[" boom boom", " boom"])
    Trainer(config, ASTEnvironment(problem, ["one"]), algorithm).train()
    assert problem.attacker.softmax(0)[problem.words.index("boom")] > 0.9


def test_a_warm_start_goes_on_where_it_was():
    algorithm, other = (WarmStart(ToyProblem(), attacks=list(" abcde")) for _ in range(2))
    environment = ASTEnvironment(algorithm.problem, ["one"])
    algorithm.collector.collect(environment, 0, 3)
    other.load_state_dict(algorithm.state_dict())
    nodes = [
        [
            node.attack
            for graph in each.collector.collect(environment, 1, 4).kept
            for node in graph.nodes()
        ]
        for each in (algorithm, other)
    ]
    assert nodes[0] == nodes[1]


@pytest.mark.slow
def test_the_second_stage_takes_over_what_the_first_one_found():
    """Balance until letters are good, then teach a fresh attacker the good ones."""
    from astra_rl import ContrastiveBalance

    first = {}

    def make(problem):
        first["algorithm"] = ContrastiveBalance(problem, temperature=0.05)
        return first["algorithm"]

    learn(make, steps=25)
    found = [
        ImitationStep(entry.context, entry.attack, entry.reward)
        for entry in first["algorithm"].memory.entries
    ]
    environment = letter_game()
    config = TrainingConfiguration(
        lr=5e-3,
        training_steps=30,
        num_episodes_per_experience=32,
        batch_size=32,
        seed=0,
        optimizer="adam",
    )
    algorithm = WarmStart(
        environment.problem, attacks=found, min_reward=0.9, min_logprob=-100, distinct=True
    )
    Trainer(config, environment, algorithm).train()
    graphs = environment.rollouts(range(16))
    rewards = [node.reward for graph in graphs for node in graph.nodes()]
    assert sum(rewards) / len(rewards) > 0.8


@pytest.mark.parametrize(
    "options",
    [
        {"best": 0},
        {"min_reward": nan},
        {"replay": -1},
        {"replay_share": 1.0},
        {"rehearse": -1},
        {"untrained_share": 2.0},
        {"tempered_share": -0.5},
        {"temperatures": (0.0, 1.0)},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        ExpertIteration(ToyProblem(), **options)


def test_gradients_reach_the_attacker():
    problem = ToyProblem()
    algorithm = WarmStart(problem, attacks=[" boom"])
    loss, _ = algorithm.step(algorithm.collate_fn([ImitationStep("c", " boom")]))
    loss.backward()
    assert torch.isfinite(problem.attacker.grad).all()
    assert problem.attacker.grad.abs().sum() > 0
