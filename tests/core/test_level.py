import pytest

from astra_rl import ContractError, Conversation
from astra_rl.core.level import Level, current_level, tree_level


def test_inside_a_block_the_level_is_the_one_that_was_given():
    level = Level((0, 0, 1), (False, False, True), 2)
    with tree_level(level):
        assert current_level(["a", "b", "c"]) == level
    assert current_level(["a"]) == Level((0,), (True,))


def test_outside_turns_of_equal_contexts_are_siblings_and_the_last_of_their_conversation():
    hidden = Conversation("a", system="s")
    assert current_level(["a", hidden, "a"]) == Level((0, 1, 0), (True, True, True), None)


def test_groups_are_the_rows_of_each_set_of_siblings():
    assert Level((5, 3, 5), (False,) * 3).groups() == [[0, 2], [1]]
    assert Level((), ()).groups() == []


def test_asking_about_a_part_of_a_level_is_refused():
    with (
        tree_level(Level((0, 0), (True, True))),
        pytest.raises(ContractError, match="1 turns inside a tree level of 2"),
    ):
        current_level(["a"])
