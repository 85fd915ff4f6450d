"""Search by mutation: variants of successes, no attack twice, and the same after a resume."""

from __future__ import annotations

import json
import math
from collections import Counter
from random import Random

import pytest
import torch

from astra_rl import ASTProblem, ConfigurationError, Conversation, Utterance
from astra_rl.algorithms import GRPO, ExpertIteration
from astra_rl.bench import NoTraining, PlantedTarget, discovered, play
from astra_rl.core.graph import Graph, Node
from astra_rl.core.seeding import current_row_seeds, row_seeds
from astra_rl.methods.mutation import PER_KIND, MutationEnvironment, Successes
from astra_rl.rewards import Harm
from astra_rl.testing import ScriptedModerator, letter_game
from astra_rl.training import Harness, Trainer, TrainingConfiguration

WORDS = "abcdefgh"


class Letters(ASTProblem):
    """The attacker says one of eight letters, and a variant of an attack doubles it."""

    def __init__(self, score):
        super().__init__(ScriptedModerator(score), Harm())
        self.mutated = []

    def rollout_prompt_with_attacker(self, contexts):
        return [Random(seed).choice(WORDS) for seed in current_row_seeds(len(contexts))]

    def mutate_attacks(self, contexts, attacks, *, temperature):
        self.mutated += attacks
        return [each * 2 for each in attacks]

    def rollout_prompt_with_target(self, contexts):
        return [Conversation.of(context).attacks[-1] for context in contexts]

    def parameters(self):
        yield from ()

    get_attacker_logprobs = get_target_logprobs = get_baseline_logprobs = None


def attacks_of(environment, seeds):
    return [node.attack for graph in environment.rollouts(seeds) for node in graph.nodes()]


def test_what_was_answered_is_not_sent_again_before_all_else_was():
    """Eight letters, eight experiences of one attack: each letter once, then repetitions."""
    environment = MutationEnvironment(Letters({}), ["x"], 1, redraws=400)
    said = []
    for seed in range(9):
        graphs = environment.rollouts([seed])
        said += [node.attack for graph in graphs for node in graph.nodes()]
        environment.observe(graphs)
    assert sorted(said[:8]) == list(WORDS)
    assert said[8] in WORDS
    once = MutationEnvironment(Letters({}), ["x"], 1, redraws=0)
    drawn = []
    for seed in range(9):
        graphs = once.rollouts([seed])
        drawn += [node.attack for graph in graphs for node in graph.nodes()]
        once.observe(graphs)
    assert len(set(drawn)) < 9


def test_variants_are_of_successes_only_and_come_with_their_probability():
    environment = MutationEnvironment(Letters({"a": 1.0, "b": 0.4}), ["x"], 1, share=0.5, redraws=0)
    assert not any(len(each) > 1 for each in attacks_of(environment, range(50)))
    nodes = [
        Node("x", said, said, 0.0, [], reward_terms={"harm_response": score})
        for said, score in (("a", 1.0), ("b", 0.4), ("c", math.nan))
    ]
    environment.observe([Graph("x", nodes)])
    assert environment.successes.kinds == [["a"]]
    drawn = Counter(attacks_of(environment, range(400)))
    assert set(environment.problem.mutated) == {"a"}
    assert 160 <= drawn["aa"] <= 240
    assert drawn["c"]  # its score is missing, so it may be sent again
    (graph,) = environment.eval_rollouts([3])
    assert len(graph.children[0].attack) == 1


def test_without_a_share_of_variants_repeated_attacks_are_drawn_again_from_the_attacker():
    environment = MutationEnvironment(Letters({"a": 1.0}), ["x"], 1, share=0.0, redraws=9)
    for seed in range(6):
        environment.observe(environment.rollouts([seed]))
    environment.successes.add(environment.problem, "a")
    attacks_of(environment, range(30))
    assert not environment.problem.mutated


def test_kinds_are_drawn_alike_however_often_they_were_found():
    found, models = Successes(0.5), Letters({})
    for attack in ("one two three", "four five six", "one two three four", *("one two",) * 3):
        found.add(models, attack)
    assert [len(kind) for kind in found.kinds] == [3, 1]
    drawn = Counter(found.draw(Random(seed)) for seed in range(400))
    assert 160 <= drawn["four five six"] <= 240
    for extra in range(9):
        found.add(models, f"one two three {'x' * extra}")
    assert len(found.kinds[0]) == PER_KIND


def test_kinds_by_meaning_are_those_of_the_embedder_also_after_a_resume():
    """The embedder reads the last word only; a text that it cannot embed is left out."""

    def by_last_word(texts):
        rows = {"x": [1.0, 0.0], "y": [0.0, 1.0], "?": [math.nan, math.nan]}
        return torch.tensor([rows[text.split()[-1]] for text in texts])

    whole, models = Successes(embedder=by_last_word), Letters({})
    for attack in ("a b x", "a b y", "c ?", "c d x"):
        whole.add(models, attack)
    assert whole.kinds == [["a b x", "c d x"], ["a b y"]]
    again = Successes(embedder=by_last_word)
    again.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for found in (whole, again):
        found.add(models, "e f y")
    assert again.kinds == whole.kinds == [["a b x", "c d x"], ["a b y", "e f y"]]


def test_a_variant_differs_in_one_token_and_the_rest_is_kept():
    """The oracle: token ids of three letters, before and after, and all places are drawn."""
    problem = letter_game().problem
    with row_seeds([0]):
        (attack,) = problem.rollout_prompt_with_attacker(["ask: "])
    assert len(attack.token_ids) > 1
    rows = 60
    with row_seeds(list(range(rows))):
        variants = problem.mutate_attacks(["ask: "] * rows, [attack] * rows, temperature=3.0)
    changed = Counter()
    for each in variants:
        assert each.logprobs is None
        assert isinstance(each, Utterance)
        if len(each.token_ids) == len(attack.token_ids):
            places = [
                place
                for place, pair in enumerate(zip(attack.token_ids, each.token_ids, strict=True))
                if pair[0] != pair[1]
            ]
            assert len(places) <= 1
            changed.update(places)
        assert problem.attacker_renderer.read(each.token_ids).answer == str(each)
    assert len(changed) > 1
    assert not problem.attacker.training
    with row_seeds([0]):
        alone = problem.mutate_attacks(["ask: "], [attack], temperature=3.0)
    assert alone[0].token_ids == variants[0].token_ids


def config(steps):
    return TrainingConfiguration(
        lr=1e-3, batch_size=8, training_steps=steps, num_episodes_per_experience=4, seed=0
    )


def searching():
    return MutationEnvironment(letter_game().problem, ["ask: "], 2, threshold=0.1)


def test_a_resumed_search_ends_as_an_uninterrupted_one():
    whole, parts, again = searching(), searching(), searching()
    Trainer(config(6), whole, NoTraining(whole.problem)).train()
    first = Trainer(config(3), parts, NoTraining(parts.problem))
    first.train()
    state = json.loads(json.dumps(first.state_dict()["environment"]))
    second = Trainer(config(6), again, NoTraining(again.problem))
    second.load_state_dict({**first.state_dict(), "environment": state})
    second.train()
    assert again.state_dict() == whole.state_dict()
    assert again.state_dict() != parts.state_dict()
    assert whole.successes.kinds


def test_an_algorithm_on_policy_refuses_attacks_of_others():
    environment = searching()
    with pytest.raises(ConfigurationError, match="GRPO trains on attacks that the attacker"):
        Harness(environment, GRPO(environment.problem))
    Harness(environment, ExpertIteration(environment.problem))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.1}, "share=1.1"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"redraws": -1}, "redraws=-1"),
        ({"threshold": 0.0}, "threshold=0"),
        ({"similarity": 0.0}, "similarity=0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        MutationEnvironment(Letters({}), ["x"], **options)


@pytest.mark.slow
def test_mutation_finds_more_planted_modes_than_sampling_with_as_many_calls():
    target = PlantedTarget(10, seed=3)
    recall = {}
    for name, more in (("mutation", {"environment": MutationEnvironment}), ("sampling", {})):
        played = play(target, NoTraining, calls=1024, seed=0, **more)
        assert len(played.calls) == 1024
        recall[name] = discovered(target, played.calls).recall
    assert recall["mutation"] >= 0.9 > recall["sampling"]


def test_pairs_of_experiences_know_of_earlier_ones_only():
    """An episode depends on its seed and the experiences before, not on others of its batch."""
    environment = searching()
    together = environment.rollouts([1, 2, 3])
    alone = [environment.rollout(seed) for seed in (1, 2, 3)]
    first, second = ([graph.children[0].attack for graph in each] for each in (together, alone))
    assert first == second
