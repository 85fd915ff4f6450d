"""Attacks that are known, sent to a target."""

from astra_rl.core.seeding import current_row_seeds
from astra_rl.methods.replay import replay_attacks
from astra_rl.testing import ToyProblem


class Seeded(ToyProblem):
    """Its target answers with the seed that it was given."""

    def rollout_prompt_with_target(self, contexts):
        return [f" {seed}" for seed in current_row_seeds(len(contexts))]


def said(graphs):
    return [[node.response for node in graph.nodes()] for graph in graphs]


def test_the_same_attack_sent_twice_is_answered_twice_and_the_same_seed_answers_alike():
    answers = said(replay_attacks(Seeded(), ["a", "a"], [["x"], ["x"]], seed=3))
    assert answers[0] != answers[1]
    assert answers == said(replay_attacks(Seeded(), ["a", "a"], [["x"], ["x"]], seed=3))
    assert answers != said(replay_attacks(Seeded(), ["a", "a"], [["x"], ["x"]], seed=4))


def test_parts_get_the_answers_that_all_together_would_get():
    openings, attacks = list("abcde"), [["x", "y"]] * 5
    whole = said(replay_attacks(Seeded(), openings, attacks))
    assert whole == said(replay_attacks(Seeded(), openings, attacks, batch_size=2))
    parts = [
        *replay_attacks(Seeded(), openings[:3], attacks[:3]),
        *replay_attacks(Seeded(), openings[3:], attacks[3:], numbers=range(3, len(openings))),
    ]
    assert whole == said(parts)
