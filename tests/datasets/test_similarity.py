"""Near-duplicates."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_rl.datasets.similarity import (
    near_duplicate_groups,
    near_duplicates,
    similarity,
    word_tokens,
)
from astra_rl.errors import ConfigurationError

TEXTS = st.lists(st.lists(st.sampled_from("abcdefgh!?"), max_size=7).map(" ".join), max_size=25)
THRESHOLDS = st.sampled_from([0.1, 1 / 3, 0.5, 0.6, 0.7, 0.75, 0.9, 1.0])


@settings(deadline=None)
@given(TEXTS, THRESHOLDS)
def test_pairs_are_those_that_comparing_all_finds(texts: list[str], threshold: float) -> None:
    brute = [
        (a, b)
        for a, b in combinations(range(len(texts)), 2)
        if similarity(texts[a], texts[b]) >= threshold
    ]
    assert sorted(near_duplicates(texts, threshold=threshold)) == brute


@settings(deadline=None)
@given(TEXTS, THRESHOLDS)
def test_groups_are_what_is_connected_by_such_pairs(texts: list[str], threshold: float) -> None:
    groups = near_duplicate_groups(texts, threshold=threshold)
    assert sorted(index for group in groups for index in group) == list(range(len(texts)))
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    neighbours: dict[int, set[int]] = {index: {index} for index in range(len(texts))}
    for a, b in combinations(range(len(texts)), 2):
        if similarity(texts[a], texts[b]) >= threshold:
            assert group_of[a] == group_of[b]
            neighbours[a].add(b)
            neighbours[b].add(a)
    for group in groups:  # nothing is in a group that no chain of pairs leads to
        reached, todo = set(), [group[0]]
        while todo:
            reached.add(index := todo.pop())
            todo.extend(neighbours[index] - reached)
        assert reached == set(group)


def test_similarity_is_the_share_of_words_in_common() -> None:
    """{how, are, you} and {how, are, you, today} share three of four words."""
    assert similarity("How are you?", "how are YOU today") == 0.75
    assert similarity("red blue", "green") == 0.0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Hello, World!", "world hello"),
        ("\uff28\uff45\uff4c\uff4c\uff4f", "hello"),  # full width
        ("stra\u00dfe", "STRASSE"),
        ("", "   "),
    ],
)
def test_order_case_width_and_punctuation_make_no_difference(a: str, b: str) -> None:
    assert similarity(a, b) == 1.0


def test_texts_without_words_are_not_all_the_same() -> None:
    assert similarity("???", "!!!") == 0.0


def test_scripts_without_spaces_are_compared_by_pairs_of_letters() -> None:
    """One character differs at the end: seven of eight pairs of the first are in the second."""
    first, second = "今年の桜はいつも早", "今年の桜はいつも遅"
    assert len(word_tokens(first)) == 8
    assert similarity(first, second) == pytest.approx(7 / 9)
    assert similarity(first, "昨日は雨でした") == 0.0


def test_equal_texts_are_near_duplicates_at_any_threshold() -> None:
    assert list(near_duplicates(["a b", "b a", "c"], threshold=1.0)) == [(0, 1)]


@pytest.mark.exhaustive
def test_many_prompts_are_compared_without_comparing_all() -> None:
    """Comparing all pairs of 20,000 texts would take minutes."""
    generator = random.Random(0)
    words = [f"word{index}" for index in range(5000)]
    texts = [" ".join(generator.choices(words, k=12)) for _ in range(20_000)]
    planted = [(index, index + 10_000) for index in range(0, 10_000, 500)]
    for original, copy in planted:
        texts[copy] = texts[original] + " again"
    assert sorted(near_duplicates(texts)) == planted


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01])
def test_a_threshold_out_of_its_range_is_refused_at_once(threshold: float) -> None:
    for find in (near_duplicates, near_duplicate_groups):
        with pytest.raises(ConfigurationError, match="it must be in"):
            find(["a"], threshold=threshold)
