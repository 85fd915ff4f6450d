"""Which words explain the failures that a judge reported."""

from __future__ import annotations

from astra_rl.bench import Call
from astra_rl.bench.causes import causes


def test_each_reported_attack_is_grouped_by_the_pair_of_words_that_makes_attacks_fail():
    """Attacks on lava after "about" fail, and so does the limerick; the words around do not."""
    failed = ["explain facts about lava", "tell facts about lava", "the bus as a limerick"]
    held = ["explain facts about boats", "tell lava", "the bus as a song", "facts about the bus"]
    calls = [Call(None, True, each) for each in failed] + [Call(None, False, each) for each in held]
    found = causes(calls)
    assert found[("about", "lava")] == sorted(failed[:2])
    assert [attacks for pair, attacks in found.items() if pair != ("about", "lava")] == [failed[2:]]
    assert ("a", "limerick") in found


def test_a_pair_of_many_failures_explains_more_than_one_of_few():
    calls = [Call(None, True, f"word{number} open sesame") for number in range(5)]
    assert list(causes(calls)) == [("open", "sesame")]


def test_attacks_without_a_report_or_without_two_words_have_no_cause():
    calls = [Call(0, False, "open sesame"), Call(0, True, "sesame"), Call(0, True), Call(0, False)]
    assert causes(calls) == {}
