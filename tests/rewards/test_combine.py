"""What makes one reward of several parts."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from astra_rl import ConfigurationError, ContractError, Exchange
from astra_rl.core.level import Level, tree_level
from astra_rl.rewards import (
    Constrained,
    FunctionTerm,
    Gate,
    Limit,
    Mapped,
    Product,
    Rank,
    Reward,
    RewardTerm,
    Standardized,
    WeightedSum,
    affine,
    clip,
    sigmoid,
    threshold,
)
from astra_rl.rewards.base import check_names, load_state_dict, observe, state_dict, walk
from astra_rl.rewards.combine import ranks

nan = math.nan


class Given(RewardTerm):
    """Has the values that it was made with, whatever it is asked."""

    def __init__(self, *values, name="a"):
        self.values, self.name = list(values), name

    def __call__(self, models, exchanges):
        return self.values


def value_of(reward, rows=1):
    return reward.evaluate(None, [Exchange("c", "a", "r")] * rows)[0]


def a(*values):
    return Given(*values, name="a")


def b(*values):
    return Given(*values, name="b")


# By hand.


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (WeightedSum({a(2.0): 3.0, b(1.0): -0.5}), 5.5),
        (Product([a(0.5), b(0.25)]), 0.125),
        (Product([a(-0.5), b(-0.25)]), 0.0),
        (Gate(a(0.7), b(0.5), at_least=0.5), 0.7),
        (Gate(a(0.7), b(0.49), at_least=0.5), 0.0),
        (Gate(a(0.7), b(0.5), at_most=0.5), 0.7),
        (Gate(a(0.7), b(0.6), at_least=0.2, at_most=0.5), 0.0),
        (Gate(a(0.7), b(0.0), at_least=0.5, otherwise=-300.0), -300.0),
        (threshold(a(0.5)), 1.0),
        (threshold(a(0.49)), 0.0),
        (clip(a(7.0), -1.0, 2.0), 2.0),
        (affine(a(0.5), -2.0, 1.0), 0.0),
        (sigmoid(a(0.75), 10.0, 0.5), 0.9241418),  # sigmoid(2.5)
        (sigmoid(a(-1e6)), 0.0),
        (Mapped(a(3.0), math.sqrt), 1.7320508),
        (Rank(a(3.0)), 0.5),
        # (0.9 - 1 * (0.5 - 0.3) - 1 * (0.1 - 0.4)) / (1 + 2): the first limit is broken by 0.2
        (
            Constrained(
                a(0.9), [Limit(b(0.3), at_least=0.5), Limit(Given(0.1, name="c"), None, 0.4)]
            ),
            (0.9 - 0.2 + 0.3) / 3,
        ),
        # before the first experience mean 0, deviation 1: sigmoid(1.1 / 1.1)
        (Standardized(a(1.1)), 0.7310586),
    ],
)
def test_combinations_by_hand(reward, expected):
    assert value_of(reward) == pytest.approx([expected])


def test_every_part_is_recorded_by_name_and_a_reward_that_has_one_too():
    inner = Product([a(0.5), b(0.25)])
    inner.name = "both"
    outer = Gate(inner, Given(1.0, name="open"), at_least=1)
    _, rows = outer.evaluate(None, [Exchange("c", "a", "r")])
    assert rows == [{"a": 0.5, "b": 0.25, "both": 0.125, "open": 1.0}]


def test_the_multipliers_of_a_constraint_are_recorded():
    _, rows = Constrained(a(0.9), [Limit(b(0.3), 0.5)]).evaluate(None, [Exchange("c", "a", "r")])
    assert rows == [{"a": 0.9, "b": 0.3, "multiplier_b": 1.0}]


def test_a_function_is_a_term():
    def shortness(exchanges):
        return [1 / (1 + len(each.attack)) for each in exchanges]

    _, rows = FunctionTerm(shortness).evaluate(None, [Exchange("c", "abc", "r")])
    assert rows == [{"shortness": 0.25}]
    assert FunctionTerm(len, "count").name == "count"


def test_what_loses_a_turn_is_named():
    class Forgetful(Reward):
        def __call__(self, models, exchanges):
            return [], []

    with pytest.raises(ContractError, match="Forgetful returned 0 values for 1"):
        value_of(Forgetful())
    with pytest.raises(ContractError, match="reward term 'a' returned 2 values for 1"):
        value_of(Product([a(1.0, 2.0)]))


# Whatever the parts say.

finite = st.floats(-100, 100)
any_value = st.one_of(finite, st.just(nan))


@given(st.lists(any_value, min_size=1, max_size=4))
def test_a_product_is_never_negative_and_missing_if_a_factor_is(values):
    product = value_of(Product([Given(v, name=str(i)) for i, v in enumerate(values)]))[0]
    if any(map(math.isnan, values)):
        assert math.isnan(product)
    else:
        assert product >= 0
        assert product == 0 or min(values) > 0


@given(any_value, any_value, finite)
def test_a_gate_zeroes_what_is_behind_it_and_is_missing_if_its_condition_is(paid, when, bound):
    value = value_of(Gate(a(paid), b(when), at_least=bound))[0]
    if math.isnan(when):
        assert math.isnan(value)
    elif when < bound:
        assert value == 0
    else:
        assert value == paid or (math.isnan(value) and math.isnan(paid))


@pytest.mark.parametrize(
    "make",
    [
        lambda part: WeightedSum({part: 0.5, b(1.0): 1.0}),
        lambda part: Product([part, b(0.0)]),
        lambda part: Gate(b(1.0), part, at_least=0),
        lambda part: Gate(part, b(1.0), at_least=0),
        lambda part: Constrained(b(1.0), [Limit(part, 0.5)]),
        lambda part: Constrained(part, [Limit(b(1.0), 0.5)]),
        Rank,
        Standardized,
        threshold,
        sigmoid,
        clip,
        affine,
    ],
)
def test_what_is_missing_stays_missing(make):
    assert math.isnan(value_of(make(a(nan)))[0])
    assert math.isfinite(value_of(make(a(0.5)))[0])


@given(st.lists(finite, min_size=2, max_size=9))
def test_ranks_agree_with_scipy(values):
    expected = (rankdata(values) - 1) / (len(values) - 1)
    assert ranks(values) == pytest.approx(list(expected))


@given(st.lists(any_value, max_size=9), st.randoms())
def test_ranks_follow_their_values_and_a_missing_one_is_no_rival(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    ranked = ranks(values)
    assert ranks([values[i] for i in order]) == pytest.approx(
        [ranked[i] for i in order], nan_ok=True
    )
    present = [value for value in values if not math.isnan(value)]
    assert [rank for rank in ranked if not math.isnan(rank)] == ranks(present)


def test_ranks_are_among_siblings_only():
    with tree_level(Level((0, 0, 1, 1), (True,) * 4, 0)):
        assert value_of(Rank(a(1.0, 2.0, 9.0, 8.0)), 4) == [0.0, 1.0, 1.0, 0.0]


# Memory.


def test_a_multiplier_rises_while_its_limit_is_broken_and_falls_while_it_is_kept(experience):
    """u starts at 0. A mean of 0.2 where 0.5 is wanted: excess 0.3, u = 0.2 * 0.3 = 0.06.

    Then a mean of 0.9: velocity 0.1 * 0.3 - 0.4 * exp(0.06) = -0.394735, u = 0.06 - 0.078947.
    """
    reward = Constrained(a(1.0), [Limit(b(1.0), at_least=0.5)])
    observe(reward, None, experience("b", "x", "y", values=[0.1, 0.3]))
    assert reward.multipliers == pytest.approx([math.exp(0.06)])
    observe(reward, None, experience("b", "x", values=[0.9]))
    assert reward.multipliers == pytest.approx([math.exp(0.06 - 0.0789469)], rel=1e-6)


def test_a_multiplier_has_a_ceiling_and_learns_nothing_from_what_is_missing(experience):
    reward = Constrained(a(1.0), [Limit(b(1.0), at_least=0.5)], maximum=2.0)
    observe(reward, None, experience("b", "x", values=[nan]))
    assert reward.multipliers == [1.0]
    for _ in range(50):
        observe(reward, None, experience("b", "x", values=[0.0]))
    assert reward.multipliers == pytest.approx([2.0])


def test_a_multiplier_is_soon_back_after_a_long_time_without_a_violation(experience):
    reward = Constrained(a(1.0), [Limit(b(1.0), at_least=0.5)])
    for _ in range(500):
        observe(reward, None, experience("b", "x", values=[1.0]))
    assert reward.multipliers == pytest.approx([0.1])
    for _ in range(90):
        observe(reward, None, experience("b", "x", values=[0.0]))
    assert reward.multipliers[0] >= 1


def test_a_part_is_standardized_by_running_averages(experience):
    """Values 1 and 3: mean 2, deviation 1: 3.1 lies at sigmoid(1.1 / 1.1).

    Then 4 and 4 with decay 0.5: mean 3, variance 0.5 * 1 + 0.5 * 0: sigmoid(0.1 / (0.7071 + 0.1)).
    """
    reward = Standardized(a(3.1), decay=0.5)
    observe(reward, None, experience("a", "x", "y", values=[1.0, 3.0]))
    assert value_of(reward) == pytest.approx([0.7310586])
    observe(reward, None, experience("a", "x", "y", values=[4.0, 4.0]))
    assert value_of(reward) == pytest.approx([1 / (1 + math.exp(-0.1 / (math.sqrt(0.5) + 0.1)))])
    observe(reward, None, experience("a", "x", values=[nan]))
    assert value_of(reward) == pytest.approx([1 / (1 + math.exp(-0.1 / (math.sqrt(0.5) + 0.1)))])


def make_remembering():
    constrained = Constrained(Standardized(a(1.0)), [Limit(b(0.2), at_least=0.5)])
    return WeightedSum({constrained: 1.0, Given(0.0, name="c"): 0.1})


def test_a_state_round_trips_through_json(experience):
    first, second = make_remembering(), make_remembering()
    observe(first, None, experience("a", "x", "y", values=[0.2, 0.4]))
    observe(first, None, experience("b", "x", values=[0.1]))
    state = json.loads(json.dumps(state_dict(first)))
    assert value_of(first) != value_of(second)
    load_state_dict(second, state)
    assert value_of(first) == value_of(second)
    assert state_dict(second) == state_dict(first)


def test_the_state_of_another_reward_is_refused():
    with pytest.raises(ConfigurationError, match="Resume with the reward that the run was started"):
        load_state_dict(WeightedSum({a(1.0): 1.0}), state_dict(make_remembering()))


def test_a_part_that_stands_in_two_places_learns_once():
    class Counting(Given):
        seen = 0

        def observe(self, models, graphs):
            self.seen += 1

    part = Counting(1.0)
    reward = Product([part, Gate(b(1.0), part, at_least=0)])
    assert [each.name for each in walk(reward) if each.name] == ["a", "b"]
    observe(reward, None, [])
    assert part.seen == 1


# Refused.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Product([]), "at least one"),
        (lambda: Gate(a(1.0), b(1.0)), "a gate needs a bound"),
        (lambda: Limit(a(1.0)), "a limit needs exactly one bound"),
        (lambda: Limit(a(1.0), 0.1, 0.2), "a limit needs exactly one bound"),
        (lambda: Limit(Product([a(1.0)]), 0.1), "Product has no name"),
        (lambda: Standardized(Product([a(1.0)])), "Product has no name"),
        (lambda: Standardized(a(1.0), epsilon=0), "epsilon=0"),
        (lambda: Standardized(a(1.0), decay=1.0), r"decay=1.0; it must be in \[0, 1\)"),
        (lambda: Constrained(a(1.0), []), "at least one"),
        (lambda: Constrained(a(1.0), [Limit(b(1.0), 0.5)], lr=-1), "lr=-1"),
        (lambda: clip(a(1.0), 2.0, 1.0), "low=2.0 and high=1.0"),
        (lambda: Product([a(1.0), a(2.0)]), "two reward terms have the name 'a'"),
        (lambda: Gate(a(1.0), a(2.0), at_least=0), "two reward terms have the name 'a'"),
        (
            lambda: check_names(Product([a(1.0), Gate(a(1.0), b(1.0), at_least=0)])),
            "have the name 'a'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
