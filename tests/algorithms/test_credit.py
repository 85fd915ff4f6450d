"""Credit over a tree against numbers derived by hand and against plain recursion."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.algorithms.credit import CREDITS, Credit, tree_gae
from astra_rl.errors import ConfigurationError

nan = math.nan

REWARDS = [1.0, 2.0, 4.0, 8.0, 16.0]
PARENTS = [None, None, 0, 0, 2]
"""Two first turns; the first goes on as turns 2 and 3, and turn 2 as turn 4."""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("turn", [1, 2, 4, 8, 16]),
        # turn 2: 4 + 16; turn 0: 1 + (20 + 8) / 2
        ("return_to_go", [15, 2, 20, 8, 16]),
        # turn 2: 4 + 0.5 * 16 = 12; turn 0: 1 + 0.5 * (12 + 8) / 2 = 6
        ("mean_backup", [6, 2, 12, 8, 16]),
        # turn 0: 1 + 0.5 * max(12, 8) = 7
        ("max_backup", [7, 2, 12, 8, 16]),
        # turn 0: (16 + 8) / 2
        ("leaf", [12, 2, 16, 8, 16]),
        # conversations 0-2-4 of 21 and 0-3 of 9, and 1 of 2
        ("trajectory", [15, 2, 21, 9, 21]),
    ],
)
def test_each_credit_by_hand(kind, expected):
    assert Credit(kind, 0.5)(REWARDS, PARENTS) == expected


@pytest.mark.parametrize("kind", CREDITS)
def test_a_single_turn_is_credited_with_its_reward(kind):
    assert Credit(kind)([3.0], [None]) == [3.0]
    assert Credit(kind)([], []) == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # turn 3 is missing: turn 0 is left with turn 2
        ("turn", [1, 2, 4, nan, 16]),
        ("return_to_go", [21, 2, 20, nan, 16]),
        ("mean_backup", [7, 2, 12, nan, 16]),
        ("max_backup", [7, 2, 12, nan, 16]),
        ("leaf", [16, 2, 16, nan, 16]),
        ("trajectory", [21, 2, 21, nan, 21]),
    ],
)
def test_a_missing_reward_does_not_count_for_the_others(kind, expected):
    for missing in (nan, math.inf, -math.inf):
        found = Credit(kind, 0.5)([1.0, 2.0, 4.0, missing, 16.0], PARENTS)
        assert found == pytest.approx(expected, nan_ok=True)


def test_without_any_known_continuation_the_credit_is_missing_and_not_zero():
    chain = [None, 0, 1]
    for kind in ("return_to_go", "mean_backup", "max_backup", "leaf", "trajectory"):
        found = Credit(kind)([1.0, 1.0, nan], chain)
        assert all(map(math.isnan, found))
    assert Credit("return_to_go")([1.0, nan, 1.0], chain) == pytest.approx(
        [nan, nan, 1.0], nan_ok=True
    )


def parent_of(turn):
    return st.none() | st.integers(0, turn - 1) if turn else st.none()


trees = st.integers(1, 8).flatmap(
    lambda size: st.tuples(
        st.lists(st.floats(-4, 4), min_size=size, max_size=size),
        st.tuples(*map(parent_of, range(size))),
        st.floats(0, 1),
    )
)


@given(trees)
def test_credits_agree_with_plain_recursion(tree):
    rewards, parents, gamma = tree
    children = [[c for c, p in enumerate(parents) if p == turn] for turn in range(len(rewards))]

    def mean(values):
        return sum(values) / len(values)

    def backup(turn, over, discount):
        below = [backup(child, over, discount) for child in children[turn]]
        return rewards[turn] + discount * (over(below) if below else 0.0)

    def leaf(turn):
        return mean([leaf(c) for c in children[turn]]) if children[turn] else rewards[turn]

    def past(turn):
        parent = parents[turn]
        return 0.0 if parent is None else rewards[parent] + past(parent)

    turns = range(len(rewards))
    expected = {
        "turn": rewards,
        "return_to_go": [backup(turn, mean, 1.0) for turn in turns],
        "mean_backup": [backup(turn, mean, gamma) for turn in turns],
        "max_backup": [backup(turn, max, gamma) for turn in turns],
        "leaf": [leaf(turn) for turn in turns],
        "trajectory": [past(turn) + backup(turn, mean, 1.0) for turn in turns],
    }
    for kind, values in expected.items():
        assert Credit(kind, gamma)(rewards, parents) == pytest.approx(values, abs=1e-9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("max_bakup",), "Did you mean 'max_backup'"),
        (("turn", 1.5), "gamma=1.5"),
        (("turn", nan), "gamma=nan"),
    ],
)
def test_a_credit_that_does_not_exist_is_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        Credit(*wrong)


# Generalised advantage estimation.


def test_gae_of_one_attack_by_hand():
    """gamma 0.5, lambda 0.5. Last token: 1 - 0.4 = 0.6. First: 0 + 0.5 * 0.4 - 0.2 = 0, plus a
    quarter of 0.6 is 0.15."""
    (found,) = tree_gae([[0.0, 1.0]], [[0.2, 0.4]], [None], gamma=0.5, lam=0.5)
    assert found == pytest.approx([0.15, 0.6])


def test_gae_where_a_turn_was_continued_in_two_ways_by_hand():
    """gamma = lambda = 1. Children: 3 - 1 = 2 and 0 - 2 = -2, values 1 and 2. Parent: next value
    1.5, next advantage 0: 1 + 1.5 - 0.5 = 2."""
    found = tree_gae([[1.0], [3.0], [0.0]], [[0.5], [1.0], [2.0]], [None, 0, 0], gamma=1.0, lam=1.0)
    assert found == [[2.0], [2.0], [-2.0]]


def masked_gae(rewards, values, mine, gamma, lam):
    """The textbook recursion over a flat transcript, skipping what the other speaker said."""
    out, advantage, value = [0.0] * len(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        if mine[t]:
            delta = rewards[t] + gamma * value - values[t]
            out[t] = advantage = delta + gamma * lam * advantage
            value = values[t]
    return [a for a, is_mine in zip(out, mine, strict=True) if is_mine]


number = st.floats(-2, 2)
attacks = st.lists(
    st.lists(st.tuples(number, number), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(attacks, st.lists(st.integers(0, 100), min_size=4, max_size=4), st.floats(0, 1), number)
def test_gae_is_that_of_a_transcript_whatever_the_length_of_the_replies(
    conversation, replies, lam, junk
):
    gamma = 0.9
    rewards, values, mine = [], [], []
    for attack, reply in zip(conversation, replies, strict=False):
        rewards += [r for r, _ in attack] + [0.0] * reply
        values += [v for _, v in attack] + [junk] * reply
        mine += [True] * len(attack) + [False] * reply
    found = tree_gae(
        [[r for r, _ in attack] for attack in conversation],
        [[v for _, v in attack] for attack in conversation],
        [None, *range(len(conversation) - 1)],
        gamma=gamma,
        lam=lam,
    )
    expected = masked_gae(rewards, values, mine, gamma, lam)
    assert [a for row in found for a in row] == pytest.approx(expected, abs=1e-9)


def test_with_lambda_one_the_advantage_is_the_return_less_the_estimate():
    found = tree_gae([[0.0, 1.0], [2.0]], [[0.3, 0.1], [5.0]], [None, 0], gamma=1.0, lam=1.0)
    assert found[0] == pytest.approx([3 - 0.3, 3 - 0.1])
    assert found[1] == [-3.0]


def test_missing_rewards_in_gae_touch_only_what_needs_them():
    """Turn 0 goes on as turn 1, which is missing, and turn 2; turn 3 goes on as a missing one."""
    found = tree_gae(
        [[0.0], [nan], [4.0], [1.0], [nan]],
        [[0.0], [0.0], [1.0], [0.0], [0.0]],
        [None, 0, 0, None, 3],
        gamma=1.0,
        lam=1.0,
    )
    assert found[0] == [4.0]
    assert math.isnan(found[1][0])
    assert found[2] == [3.0]
    assert math.isnan(found[3][0])


def test_an_attack_without_tokens_passes_its_reward_on():
    """It ended the conversation: 1 + 7 - 0.5."""
    found = tree_gae([[1.0], [7.0]], [[0.5], []], [None, 0], gamma=1.0, lam=0.3)
    assert found == [[7.5], []]
    missing = tree_gae([[1.0], [nan]], [[0.5], []], [None, 0], gamma=1.0, lam=0.3)
    assert math.isnan(missing[0][0])
