"""Splits that share nothing."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from astra_rl.datasets.rows import SPLITS, Row
from astra_rl.datasets.similarity import similarity
from astra_rl.datasets.splits import check_splits, split_rows
from astra_rl.errors import ConfigurationError


def rows_of(texts: list[str], categories: list[str] | None = None) -> list[Row]:
    return [
        Row(f"row-{index}", text, categories[index] if categories else None)
        for index, text in enumerate(texts)
    ]


PROMPTS = st.lists(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5).map(" ".join), max_size=30
)


@settings(deadline=None)
@given(PROMPTS, st.sampled_from([0.4, 0.7, 1.0]), st.integers(0, 3))
def test_no_two_splits_share_a_near_duplicate(
    texts: list[str], threshold: float, seed: int
) -> None:
    rows = rows_of(texts)
    try:
        splits = split_rows(rows, seed=seed, threshold=threshold)
    except ConfigurationError:
        assume(False)
    assert sorted(row.id for part in splits.values() for row in part) == sorted(
        row.id for row in rows
    )
    assert all(splits[split] for split in SPLITS)
    for one, other in combinations(SPLITS, 2):
        for row in splits[one]:
            assert all(similarity(row.prompt, each.prompt) < threshold for each in splits[other])
    check_splits(splits, threshold=threshold, name="test")


def test_near_duplicates_of_near_duplicates_stay_together() -> None:
    """The first and the last share two of six words, but a chain leads from one to the other."""
    chain = ["a b c d", "b c d e", "c d e f"]
    splits = split_rows(rows_of([*chain, "x y", "z w"]), threshold=0.6)
    homes = {split for split, rows in splits.items() for row in rows if row.prompt in chain}
    assert len(homes) == 1


def test_sizes_follow_the_shares() -> None:
    splits = split_rows(rows_of([f"text{index}" for index in range(100)]))
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 60,
        "validation": 20,
        "test": 20,
    }


def test_every_split_gets_its_share_of_every_category() -> None:
    texts, categories = [f"text{index}" for index in range(200)], ["a", "b", "c", "d"] * 50
    splits = split_rows(rows_of(texts, categories))
    for split, expected in (("train", 30), ("validation", 10), ("test", 10)):
        counts = Counter(row.category for row in splits[split])
        assert all(abs(count - expected) <= 1 for count in counts.values())


def test_categories_of_one_row_each_do_not_all_go_to_training() -> None:
    names = [f"c{index}" for index in range(50)]
    splits = split_rows(rows_of(names, names))
    assert [len(splits[split]) for split in SPLITS] == [30, 10, 10]


def test_a_seed_chooses_and_the_same_seed_chooses_the_same() -> None:
    rows = rows_of([f"text{index}" for index in range(50)])
    first, again, other = (split_rows(rows, seed=seed)["test"] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_rows_keep_their_order_and_may_all_go_to_one_split() -> None:
    rows = rows_of(["c", "a", "b"])
    assert split_rows(rows, shares={"test": 1.0})["test"] == rows


def test_rows_without_a_prompt_are_compared_by_their_system_message() -> None:
    rows = [Row("1", system="a b c"), Row("2", system="c b a"), Row("3", system="d")]
    splits = split_rows(rows, shares={"train": 0.5, "test": 0.5})
    assert {len(splits["train"]), len(splits["test"])} == {1, 2}


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"train": 0.5, "test": 0.4}, "sum to 0.9"),
        ({"train": 1.5, "test": -0.5}, r"train=1\.5"),
        ({"dev": 1.0}, "give train, validation, test"),
        ({}, "sum to 0"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shares: dict[str, float], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        split_rows(rows_of(["a", "b", "c"]), shares=shares)  # type: ignore[arg-type]


def test_too_few_different_prompts_for_the_splits_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="4 rows form 2 groups of near-duplicates"):
        split_rows(rows_of(["a", "A", "a!", "b"]))


def test_what_splits_share_is_named() -> None:
    rows = rows_of(["how are you today", "what is new", "How are you?"])
    with pytest.raises(ConfigurationError) as caught:
        check_splits({"train": rows[:2], "test": rows[2:]}, name="mine")
    message = str(caught.value)
    assert "mine: its splits share near-duplicates (similarity 0.7 or more)" in message
    assert "row-0 (train) and row-2 (test): 'how are you today' and 'How are you?'" in message
    assert "what is new" not in message


def test_of_very_many_shared_prompts_a_few_are_named() -> None:
    rows = rows_of(["same"] * 600)
    with pytest.raises(ConfigurationError) as caught:
        check_splits({"train": rows[:300], "test": rows[300:]}, name="mine")
    assert str(caught.value).count("'same'") == 10
    assert str(caught.value).endswith("and more")
