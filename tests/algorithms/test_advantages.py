import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl import REINFORCE, Graph, Node
from astra_rl.algorithms.advantages import (
    STD_FLOOR,
    RunningBaseline,
    batch_divisor,
    explained_variance,
    group_advantages,
    group_divisor,
    leave_one_out_advantages,
    whiten,
)
from astra_rl.errors import ConfigurationError
from astra_rl.testing import ToyProblem

nan = math.nan
rewards = st.lists(st.floats(-10, 10) | st.just(nan), max_size=6)


def test_group_advantages_by_hand():
    """Mean of 0, 1, 2 is 1, standard deviation (n - 1) is 1: -1, 0, 1, up to the floor."""
    assert group_advantages([0.0, 1.0, 2.0], scale="none") == [-1, 0, 1]
    assert group_advantages([0.0, 1.0, 2.0]) == pytest.approx([-1, 0, 1], abs=2 * STD_FLOOR)


def test_scaling_makes_groups_alike_and_no_scaling_keeps_their_size():
    assert group_advantages([0.0, 10.0])[1] == pytest.approx(
        group_advantages([0.0, 1.0])[1], rel=1e-3
    )
    assert group_advantages([0.0, 10.0], scale="none") == [-5, 5]


def test_missing_rewards_stay_missing_and_do_not_count_for_the_others():
    result = group_advantages([0.0, nan, 2.0, math.inf], scale="none")
    assert result[0::2] == [-1, 1]
    assert math.isnan(result[1])
    assert math.isnan(result[3])


@pytest.mark.parametrize("group", [[0.7], [0.5, 0.5], [0.5, 0.5 + 1e-9], [nan, 0.3], []])
def test_a_group_that_compares_nothing_has_no_advantages(group):
    assert all(value == 0 or math.isnan(value) for value in group_advantages(group))


@given(rewards, st.sampled_from(["group", "batch", "none"]))
def test_group_advantages_agree_with_plain_python(values, scale):
    present = [value for value in values if value == value]
    result = group_advantages(values, scale=scale)
    assert len(result) == len(values)
    for value, found in zip(values, result, strict=True):
        if value != value:
            assert math.isnan(found)
        elif max(present) - min(present) < 1e-6:
            assert found == 0
        else:
            expected = value - sum(present) / len(present)
            if scale == "group":
                expected /= statistics.stdev(present) + STD_FLOOR
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(rewards)
def test_advantages_of_a_group_add_up_to_zero(values):
    present = [value for value in group_advantages(values) if value == value]
    assert math.fsum(present) == pytest.approx(0, abs=1e-6)


def test_leaving_one_out_by_hand():
    """Rewards 0, 3, 6: 0 - 4.5, 3 - 3, 6 - 1.5."""
    assert leave_one_out_advantages([0.0, 3.0, 6.0]) == [-4.5, 0, 4.5]


@given(rewards)
def test_leaving_one_out_agrees_with_plain_python(values):
    present = [value for value in values if value == value]
    for value, found in zip(values, leave_one_out_advantages(values), strict=True):
        if value != value:
            assert math.isnan(found)
        elif len(present) < 2 or max(present) - min(present) < 1e-6:
            assert found == 0
        else:
            others = (sum(present) - value) / (len(present) - 1)
            assert found == pytest.approx(value - others, abs=1e-9)


def test_whitened_values_have_mean_zero_and_deviation_one():
    """1 and 3 have mean 2 and deviation 1. What is missing stays so, and does not count."""
    first, missing, second = whiten([(1.0,), (nan,), (3.0,)], [1.0, 1.0, 1.0])
    assert first == pytest.approx((-1,), abs=1e-3)
    assert second == pytest.approx((1,), abs=1e-3)
    assert math.isnan(missing[0])
    assert whiten([(4.0, 4.0)], [1.0]) == [(0.0, 0.0)]
    assert whiten([], []) == []


def test_a_weighted_row_is_whitened_like_two_rows():
    twice = whiten([(1.0, 2.0), (5.0,), (5.0,)], [1.0] * 3)
    assert whiten([(1.0, 2.0), (5.0,)], [1.0, 2.0]) == twice[:2]


def test_explained_variance_by_hand():
    """Outcomes 0 and 2 have variance 1. Errors 0, 0; 1, 1 (a constant); 0, 2 and 1, -1."""
    assert explained_variance([0.0, 2.0], [0.0, 2.0]) == 1
    assert explained_variance([-1.0, 1.0], [0.0, 2.0]) == 1
    assert explained_variance([0.0, 0.0], [0.0, 2.0]) == 0
    assert explained_variance([2.0, 0.0], [0.0, 2.0]) == -3
    assert math.isnan(explained_variance([0.0, 1.0], [1.0, 1.0]))
    assert math.isnan(explained_variance([], []))


def test_scaling_by_the_batch_divides_all_by_one_size():
    """Root mean square of 3, 4, 0, 0 is sqrt(25 / 4) = 2.5."""
    assert batch_divisor([3.0, 4.0, nan, 0.0, 0.0]) == pytest.approx(2.5, rel=1e-3)


def test_rewards_that_tie_are_not_scaled():
    assert batch_divisor([0.0, nan, 0.0]) == batch_divisor([]) == 1
    assert group_divisor([0.3, 0.3, nan]) == group_divisor([0.3]) == 1
    assert group_divisor([0.0, 2.0]) == pytest.approx(math.sqrt(2), rel=1e-3)


def test_whitening_may_be_by_the_deviation_of_other_values():
    """Mean 2 of the values, deviation 4 of the others; others that tie do not scale."""
    assert whiten([(1.0,), (3.0,)], [1.0, 1.0], measured=[(0.0,), (8.0,)]) == [
        (pytest.approx(-1 / 4, rel=1e-3),),
        (pytest.approx(1 / 4, rel=1e-3),),
    ]
    assert whiten([(1.0,), (3.0,)], [1.0, 1.0], measured=[(5.0,), (5.0,)]) == [(-1.0,), (1.0,)]


def test_the_first_rewards_are_compared_with_their_own_mean():
    assert RunningBaseline().advantages([0.0, 1.0]) == [-0.5, 0.5]


def test_running_baseline_by_hand():
    """decay 0.5: the average is 1; then rewards of mean 3 give 2 and -..., and it moves to 2."""
    baseline = RunningBaseline(0.5)
    assert baseline.advantages([1.0]) == [0.0]
    assert baseline.advantages([3.0]) == [2.0]
    assert baseline.value == 2.0
    assert baseline.advantages([2.0, 4.0]) == [0.0, 2.0]
    assert baseline.value == 2.5


def test_missing_rewards_do_not_move_the_baseline():
    baseline = RunningBaseline(0.5)
    baseline.advantages([1.0])
    assert all(math.isnan(value) for value in baseline.advantages([nan, nan]))
    assert baseline.value == 1.0
    assert math.isnan(baseline.advantages([nan, 2.0])[0])
    assert baseline.value == 1.5
    assert baseline.advantages([]) == []


@given(
    st.lists(st.lists(st.floats(-5, 5) | st.just(nan), max_size=4), max_size=5), st.floats(0, 0.99)
)
def test_running_baseline_agrees_with_plain_python(batches, decay):
    baseline, average = RunningBaseline(decay), None
    for batch in batches:
        present = [value for value in batch if value == value]
        found = baseline.advantages(batch)
        if not present:
            continue
        mean = sum(present) / len(present)
        before = mean if average is None else average
        for value, advantage in zip(batch, found, strict=True):
            if value == value:
                assert advantage == pytest.approx(value - before, abs=1e-9)
        average = decay * before + (1 - decay) * mean
    assert (baseline.value is None) == (average is None)


def test_the_state_of_a_baseline_survives_a_round_trip():
    baseline = RunningBaseline()
    baseline.advantages([1.0, 2.0])
    twin = RunningBaseline()
    twin.load_state_dict(baseline.state_dict())
    assert twin.advantages([3.0]) == baseline.advantages([3.0])


@pytest.mark.parametrize("decay", [-0.1, 1.0, nan])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigurationError, match="decay"):
        RunningBaseline(decay)


def test_means_are_weighted_as_the_loss_is():
    """Weights 3 and 1: mean 0.75, mean square (3 * 9 + 16) / 4."""
    assert RunningBaseline().advantages([1.0, 0.0, nan], [3.0, 1.0, 9.0])[:2] == [0.25, -0.75]
    assert batch_divisor([3.0, 4.0, nan], [3.0, 1.0, 9.0]) == pytest.approx((43 / 4) ** 0.5 + 1e-4)


def test_a_running_baseline_on_a_tree_is_that_of_conversations():
    """One first turn of reward 1 and three second turns of 0: mean 1/2, not 1/4."""
    below = [Node("c x", f" {word}", "r", 0.0) for word in ("rain", "song", "tree")]
    graph = Graph("c", [Node("c", " boom", "r", 1.0, below)])
    algorithm = REINFORCE(ToyProblem())
    steps = algorithm.prepare(algorithm.flatten(graph))
    assert [step.advantages[0] for step in steps] == pytest.approx([0.5, -0.5, -0.5, -0.5])
