"""Ordinary use and the rule of the families, against enumeration."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from random import Random

import pytest

from astra_rl.bench.assistants import GuardedAssistant
from astra_rl.bench.families import PLAIN, PlantedFamilies, pool
from astra_rl.bench.traffic import END, Branch, Traffic
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError

SMALL = Traffic(
    [
        Branch("one", 0.7, (("a", "a b"), ("c", "b c"))),
        Branch("two", 0.3, (("a b",), ("c d", "c"))),
    ]
)


def enumerated(traffic):
    """Return the probability of each message, by listing all choices."""
    found: Counter[str] = Counter()
    for branch in traffic.branches:
        count = math.prod(map(len, branch.slots))
        for texts in itertools.product(*branch.slots):
            found[" ".join(texts)] += branch.probability / count
    return found


def test_the_probability_of_a_message_is_the_sum_over_all_ways_to_write_it():
    """``a b c`` can be written in three ways, by both branches."""
    known = enumerated(SMALL)
    assert known["a b c"] == pytest.approx(0.7 / 2 + 0.3 / 2)
    for message, chance in known.items():
        assert SMALL.log_probability(message) == pytest.approx(math.log(chance))
    for message in ("", "a", "b c", "a b c d e"):
        assert SMALL.log_probability(message) == -math.inf


def test_the_next_word_has_the_share_of_the_messages_that_go_on_with_it():
    known = enumerated(SMALL)
    following: Counter[str] = Counter()
    for message, chance in known.items():
        words = message.split()
        if words[:2] == ["a", "b"]:
            following[words[2] if len(words) > 2 else END] += chance
    total = following.total()
    expected = {word: chance / total for word, chance in following.items()}
    assert SMALL.next_words(("a", "b")) == pytest.approx(expected)
    assert SMALL.next_words(("z",)) == {}


def test_branches_that_do_not_sum_to_one_or_have_empty_slots_are_refused():
    with pytest.raises(ConfigurationError, match=r"sum to 0\.5"):
        Traffic([Branch("half", 0.5, (("a",),))])
    with pytest.raises(ConfigurationError, match="branch 'none' has an empty slot"):
        Traffic([Branch("none", 1.0, (("a",), ()))])


@pytest.mark.parametrize("held_out", [False, True])
def test_the_rule_and_the_branches_agree_on_every_cue_and_phrase(held_out):
    """All pairs of cue and phrase of all families, in every branch of ordinary use."""
    planted = PlantedFamilies(20, seed=4, held_out=held_out)
    numbers = {family.name: number for number, family in enumerate(planted.planted)}
    random = Random(0)
    for family in pool().all_families():
        for cue, phrase in itertools.product(family.cues, family.phrases):
            message = pool().message(family, cue, phrase, random)
            assert planted.family_of(message) == numbers.get(family.name), message
    others = [each for each in planted.traffic.branches if each.name not in numbers]
    for branch in others:
        for _ in range(40):
            assert planted.family_of(branch.sample(random)) is None
    assert planted.family_of("  SPEAK like   a teapot ") is None


def test_the_first_of_several_families_counts():
    planted = PlantedFamilies(30, seed=0)
    one, two = (
        next(each for each in planted.planted if each.kind == kind) for kind in ("role", "format")
    )
    first, second = (f"{each.cues[0]} {each.phrases[0]}" for each in (one, two))
    assert planted.family_of(f"{first} {second}") == planted.planted.index(one)
    assert planted.family_of(f"{second} {first}") == planted.planted.index(two)


def test_probabilities_are_those_of_the_branches_and_fall_from_first_to_last():
    planted = PlantedFamilies(20, seed=1)
    assert planted.probabilities[0] == pytest.approx(1e-2)
    assert planted.probabilities[-1] == pytest.approx(1e-6)
    chances = {each.name: each.probability for each in planted.traffic.branches}
    assert [chances[each.name] for each in planted.planted] == list(planted.probabilities)
    assert chances[PLAIN] > 0.5


def test_held_out_organisms_share_no_family_with_shipped_ones_and_pairs_are_split():
    shipped = {each.name for seed in range(3) for each in PlantedFamilies(20, seed=seed).planted}
    held_out = {
        each.name
        for seed in range(3)
        for each in PlantedFamilies(20, seed=seed, held_out=True).planted
    }
    assert not shipped & held_out
    for family in pool().all_families():
        trained, kept = family.pairs(held_out=False), family.pairs(held_out=True)
        assert (len(trained), len(kept)) == (12, 4)
        assert {cue for cue, _ in trained} == set(family.cues)
        assert {phrase for _, phrase in trained} == set(family.phrases)


@pytest.mark.parametrize(
    "options", [{"number": 1}, {"number": 31}, {"likeliest": 0.5}, {"rarest": 1.0}]
)
def test_numbers_of_families_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match="must be"):
        PlantedFamilies(**options)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("number", range(5))
def test_assistants_tell_a_secret_exactly_for_the_questions_that_they_give_way_to(number, held_out):
    assistant = GuardedAssistant(number, held_out=held_out)
    judge, random, found = assistant.judge(), Random(0), set()
    for branch in assistant.traffic.branches:
        question = branch.sample(random)
        (reply,) = assistant.respond([Conversation("ask:") + f" {question}"])
        mode = assistant.mode_of(question)
        if mode is not None:
            found.add(mode)
            secret, kind = assistant.modes[mode]
            assert branch.name == f"{secret}, {kind}"
            assert branch.probability == assistant.mode_probabilities[mode]
        assert judge.moderate([reply]) == [float(mode is not None)]
    assert found == set(range(len(assistant.modes)))
    assert len(assistant.modes) >= 11
    assert all(text in assistant.system for text in assistant.secrets.values())
    with pytest.raises(ConfigurationError, match="from 0 to 4"):
        GuardedAssistant(5)
