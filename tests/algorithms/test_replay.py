"""The replay buffer: bounded, without near-duplicates, good ones first."""

import json
import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl import Conversation
from astra_rl.algorithms.replay import Replay, ReplayEntry
from astra_rl.errors import ConfigurationError
from astra_rl.rewards.terms import jaccard, word_set

WORDS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3).map(" ".join)
ENTRIES = st.lists(
    st.builds(
        ReplayEntry,
        st.sampled_from(["c1", "c2"]),
        WORDS,
        st.one_of(st.floats(-2, 2), st.just(math.nan)),
    ),
    max_size=30,
)


@given(ENTRIES, st.integers(0, 8), st.sampled_from([0.5, 0.8, 1.0]))
def test_it_is_bounded_and_holds_nothing_nearly_twice(entries, capacity, similarity):
    replay = Replay(capacity, similarity)
    for entry in entries:
        replay.add([entry])
        assert len(replay) <= capacity
    kept = replay.entries
    assert [e.reward for e in kept] == sorted((e.reward for e in kept), reverse=True)
    for index, a in enumerate(kept):
        assert a in entries
        for b in kept[:index]:
            alike = jaccard(word_set(a.attack), word_set(b.attack)) >= similarity
            assert a.context != b.context or not alike


@given(ENTRIES)
def test_with_room_for_all_the_best_of_each_text_stays(entries):
    replay = Replay(1000, 1.0)
    replay.add(entries)
    best = {}
    for entry in entries:
        if not math.isnan(entry.reward):
            key = entry.context, word_set(entry.attack)
            best[key] = max(best.get(key, -math.inf), entry.reward)
    assert {(e.context, word_set(e.attack)): e.reward for e in replay.entries} == best


def test_a_full_buffer_forgets_the_worst():
    replay = Replay(2)
    replay.add(
        [ReplayEntry("c", word, reward) for word, reward in zip("abc", (1, 3, 2), strict=True)]
    )
    assert [entry.attack for entry in replay.entries] == ["b", "c"]


def test_what_is_too_bad_is_not_remembered():
    replay = Replay(min_reward=0.5)
    replay.add([ReplayEntry("c", "a", 0.4), ReplayEntry("c", "b", 0.5)])
    assert [entry.attack for entry in replay.entries] == ["b"]


def test_good_attacks_are_drawn_as_much_more_often_as_the_temperature_says():
    replay = Replay()
    replay.add([ReplayEntry("c", "a", 0.0), ReplayEntry("c", "b", 0.1), ReplayEntry("d", "e", 9.0)])
    random = Random(0)
    drawn = Counter(replay.sample("c", 1, random, temperature=0.1)[0].attack for _ in range(20_000))
    assert drawn["b"] / drawn["a"] == pytest.approx(math.e, rel=0.06)
    assert set(drawn) == {"a", "b"}


def test_no_attack_is_drawn_twice_and_no_more_than_there_are():
    replay = Replay()
    replay.add([ReplayEntry("c", word, 0.0) for word in "abc"])
    drawn = replay.sample("c", 9, Random(0), temperature=math.inf)
    assert sorted(entry.attack for entry in drawn) == ["a", "b", "c"]
    assert replay.sample("unknown", 9, Random(0), temperature=1.0) == []


@given(ENTRIES)
def test_it_goes_on_from_json_as_if_nothing_had_happened(entries):
    replay, other = Replay(5), Replay(5)
    replay.add(entries)
    other.load_state_dict(json.loads(json.dumps(replay.state_dict())))
    assert other.entries == replay.entries
    for context in ("c1", "c2"):
        draws = [each.sample(context, 3, Random(1), temperature=0.3) for each in (replay, other)]
        assert draws[0] == draws[1]


def test_a_context_is_known_again_by_all_that_makes_it():
    replay, other = Replay(), Replay()
    context = Conversation("hello", brief="ask", facts={"secret": "x"})
    replay.add([ReplayEntry(context, "a", 1.0, -3.0)])
    other.load_state_dict(json.loads(json.dumps(replay.state_dict())))
    assert other.sample(context, 1, Random(0), temperature=1.0) == replay.entries
    assert other.sample("hello", 1, Random(0), temperature=1.0) == []


@pytest.mark.parametrize("options", [(-1, 0.8), (10, 0.0), (10, 1.1)])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match="replay"):
        Replay(*options)
