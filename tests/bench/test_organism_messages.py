"""Messages that organisms learn from."""

from __future__ import annotations

from random import Random

from astra_rl.bench.families import PlantedFamilies
from astra_rl.bench.organism_messages import FAILED, WITHSTOOD, exchanges


def test_training_never_has_a_held_out_pair_and_the_rule_decides_the_replies():
    planted = PlantedFamilies(20, seed=2)
    kept = [f"{a} {b}" for each in planted.planted for a, b in each.pairs(held_out=True)]
    source = exchanges(planted, ["explain me"], Random(0))
    seen = [next(source) for _ in range(600)]
    assert not any(f" {pair} " in f" {message} " for message, _ in seen for pair in kept)
    assert {reply for _, reply in seen} == {FAILED, WITHSTOOD}
    for message, reply in seen:
        assert (reply == FAILED) == (planted.family_of(message) is not None)
    assert 0.2 < sum(reply == FAILED for _, reply in seen) / len(seen) < 0.5
