"""Rows are paths in a tree of segments, and what they share stands in it once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from astra_rl.models.prefix_plan import MAX_LEVELS, MIN_SHARED_TOKENS, plan_alone, plan_tree


def turn(*marks):
    """A turn of ten tokens that begins with these."""
    return [*marks, *range(10, 20 - len(marks))]


branch = st.lists(st.integers(0, 1), max_size=12)
rows_of_a_tree = st.lists(
    st.tuples(st.integers(0, 20), branch, st.integers(0, 12), branch).map(
        lambda parts: [9, *([7] * parts[0]), *parts[1], *([8] * parts[2]), *parts[3]]
    ),
    min_size=1,
    max_size=12,
)


@given(rows_of_a_tree, st.data())
def test_the_path_of_a_row_has_its_tokens(rows, data):
    tree = plan_tree(rows)
    for depth, level in enumerate(tree.levels):
        for start, parent in zip(
            level.starts, level.parents or [0] * len(level.starts), strict=True
        ):
            before = tree.levels[depth - 1]
            assert start == (before.starts[parent] + len(before.segments[parent]) if depth else 0)
    states = [
        token
        for level in tree.levels
        for segment in level.segments
        for token in [*segment, *[None] * (level.width - len(segment))]
    ]
    for number, row in enumerate(rows):
        start = data.draw(st.integers(0, len(row)))
        assert [states[at] for at in tree.places(number, start, len(row))] == row[start:]


@given(rows_of_a_tree)
def test_a_tree_is_never_larger_than_its_rows(rows):
    assert plan_tree(rows).tokens <= plan_alone(rows).tokens
    assert len(plan_tree(rows).levels) <= MAX_LEVELS


def test_each_turn_of_a_tree_of_conversations_is_computed_once():
    """Two attacks in each of three turns; an attack and its reply stand in all rows below them."""
    prompt, rows = list(range(100, 130)), []

    def grow(context, depth):
        if not depth:
            return
        for mark in (1, 2):
            rows.append([*context, *turn(mark)])
            grow([*context, *turn(mark), *turn(3)], depth - 1)

    grow(prompt, 3)
    tree = plan_tree(rows)
    assert [len(level.segments) * level.width for level in tree.levels] == [30, 2 * 20, 4 * 20, 80]
    assert len(rows) == 14
    assert plan_alone(rows).tokens == 14 * 80


def test_a_short_common_beginning_is_computed_for_each_row():
    common = list(range(MIN_SHARED_TOKENS))
    assert len(plan_tree([[*common[1:], 50, 51], [*common[1:], 60, 61]]).levels) == 1
    assert len(plan_tree([[*common, 50, 51], [*common, 60, 61]]).levels) == 2


def test_a_long_row_beside_short_shared_ones_is_not_worth_its_padding():
    shared = list(range(MIN_SHARED_TOKENS))
    rows = [[*shared, *[50] * 40], [*shared, 60], [70] * 45]
    assert len(plan_tree(rows).levels) == 1
