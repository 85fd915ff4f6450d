"""Intervals of trials that come in groups, rates at k and spreads: brute force and simulation."""

import math
import statistics
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.cases import cases

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.intervals import (
    clustered_interval,
    proportion_interval,
    student_quantile,
)
from astra_rl.evaluation.stats.paired_seeds import SeedPairs
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.seed_spread import SeedSpread, counts_by_prompt
from astra_rl.evaluation.stats.success_at_k import QueriesToSuccess, rate_at_k, success_at_k

PROMPTS = st.lists(
    st.integers(1, 6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    min_size=1,
    max_size=12,
)


@given(PROMPTS)
def test_the_interval_holds_the_estimate_and_is_never_a_point_nor_narrower_than_wilsons(prompts):
    successes, trials = map(sum, zip(*prompts, strict=True))
    low, high = clustered_interval(prompts)
    assert 0 <= low < high <= 1
    assert low <= successes / trials <= high
    if 0 < successes < trials and len(prompts) > 1:
        inner = proportion_interval(successes, trials)
        assert low <= inner.low
        assert high >= inner.high


@given(PROMPTS, st.randoms())
def test_the_same_trials_give_the_same_interval_in_any_order(prompts, random):
    shuffled = random.sample(prompts, len(prompts))
    assert clustered_interval(shuffled) == clustered_interval(prompts)


def test_where_all_trials_agree_each_prompt_counts_once():
    assert clustered_interval([(0, 10)] * 5) == proportion_interval(0, 5)
    assert clustered_interval([(10, 10)] * 5) == proportion_interval(5, 5)
    assert clustered_interval([]) == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alike", "rate", "prompts"),
    cases(
        product([0.05, 0.4], [0.02, 0.5, 0.9], [3, 12, 60]),
        by_default={
            (0.05, 0.02, 3),
            (0.4, 0.02, 12),
            (0.4, 0.02, 60),
            (0.4, 0.5, 3),
            (0.05, 0.5, 60),
            (0.05, 0.9, 12),
            (0.4, 0.9, 60),
        },
    ),
)
def test_95_percent_intervals_hold_the_true_rate_at_least_93_percent_of_the_time(
    prompts, rate, alike
):
    """Beta-binomial trials, five per prompt, whose rates differ."""
    generator = np.random.default_rng(1)
    concentration = 1 / alike - 1
    held = 0
    repetitions = 400
    for _ in range(repetitions):
        rates = generator.beta(rate * concentration, (1 - rate) * concentration, prompts)
        successes = generator.binomial(5, rates)
        low, high = clustered_interval([(int(each), 5) for each in successes])
        held += low <= rate <= high
    assert held / repetitions >= 0.93


@given(
    st.integers(0, 8).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(1, 8)
)
def test_success_at_k_is_the_share_of_sets_of_k_that_hold_a_success(trials, k):
    won, n = trials
    value = success_at_k(won, n, k)
    if n < k:
        assert math.isnan(value)
        return
    sets = list(combinations([True] * won + [False] * (n - won), k))
    assert value == pytest.approx(sum(map(any, sets)) / len(sets))


def test_success_at_k_has_no_bias_where_the_plug_in_has():
    generator = np.random.default_rng(0)
    rate, n, k = 0.3, 8, 4
    truth = 1 - (1 - rate) ** k
    draws = generator.binomial(n, rate, 20_000)
    ours = statistics.fmean(success_at_k(int(won), n, k) for won in draws)
    plug_in = statistics.fmean(1 - (1 - won / n) ** k for won in draws)
    assert ours == pytest.approx(truth, abs=0.005)
    assert plug_in < truth - 0.02


def test_prompts_tried_too_seldom_are_left_out_and_counted():
    found = rate_at_k([(1, 2), (0, 2), (1, 1)], 2)
    assert (found.estimate, found.prompts, found.left_out) == (0.5, 2, 1)
    assert math.isnan(rate_at_k([(1, 1)], 2).estimate)
    with pytest.raises(ConfigurationError, match="k=0"):
        rate_at_k([(1, 1)], 0)


@given(st.integers(1, 4), st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_the_rate_at_1_is_the_success_rate_where_all_prompts_have_as_many_trials(trials, counts):
    prompts = [(min(count, trials), trials) for count in counts]
    rate, at_1 = Rate.of_prompts(prompts), rate_at_k(prompts, 1)
    assert at_1.estimate == pytest.approx(rate.estimate)
    assert at_1.interval == rate.interval


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 1000])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_quantile_of_students_t_is_scipys(degrees, confidence):
    exact = stats.t.ppf((1 + confidence) / 2, degrees)
    assert student_quantile(confidence, degrees) == pytest.approx(exact, rel=0.015)
    if confidence == 0.95:
        assert student_quantile(confidence, degrees) == pytest.approx(exact, rel=0.002)


def test_queries_to_success_do_not_forget_prompts_that_were_never_won():
    queries = QueriesToSuccess((1, 3), (5, 5, 5))
    assert queries.median == math.inf
    assert QueriesToSuccess((1, 3, 7), (5,)).median == 3
    assert math.isnan(QueriesToSuccess((), ()).median)
    assert QueriesToSuccess((1, 2), (5, 5)).median == 2  # half of the prompts succeed within two
    # Three prompts were tried twice only: they do not say that the third try fails.
    assert QueriesToSuccess((1, 3), (2, 2, 2)).median == 3
    assert QueriesToSuccess((1, 3, 4, 9), (2, 2)).median == 4  # 5/6, then 5/6 * 2/3, * 1/2
    assert queries.text.startswith("no median of the answers until the first failure; 3 of 5")
    assert QueriesToSuccess((1, 3, 7), (5,)).text.startswith("median 3 answers")
    rate = queries.won_within(4)
    assert (rate.successes, rate.trials, rate.unscored) == (2, 5, 0)
    assert queries.won_within(9).unscored == 3


def seeds(*rates, trials=50):
    return SeedSpread({at: Rate(round(rate * trials), trials) for at, rate in enumerate(rates)})


def test_equal_rates_of_all_seeds_do_not_give_a_point():
    for spread in (seeds(1.0, 1.0, 1.0), seeds(0.0, 0.0, 0.0, 0.0), seeds(0.5, 0.5, 0.5)):
        low, high = spread.interval
        assert low <= spread.mean <= high
        assert high - low > 0.1


@pytest.mark.parametrize("count", [3, 5])
def test_the_interval_over_seeds_covers_rates_near_one_and_collapsed_seeds(count):
    generator = np.random.default_rng(0)
    for collapsed in (0.0, 0.15):
        held = 0
        for _ in range(100):
            rates = np.where(generator.random(count) < collapsed, 0.0, 0.99)
            known = {at: Rate(int(generator.binomial(50, p)), 50) for at, p in enumerate(rates)}
            low, high = SeedSpread(known).interval
            held += low <= 0.99 * (1 - collapsed) <= high
        assert held >= 93


def seeds_on_the_same_prompts(generator, chances, count):
    return {
        seed: Rate.of_prompts([(int(generator.binomial(5, p)), 5) for p in chances])
        for seed in range(count)
    }


def test_more_seeds_do_not_reduce_the_error_of_the_prompts_that_they_share():
    """20 seeds of equal attackers on 20 prompts, each of which nearly always fails or never."""
    generator = np.random.default_rng(0)
    held = differs = 0
    for _ in range(40):
        chances, others = generator.beta(0.2, 0.2, (2, 20))
        a = seeds_on_the_same_prompts(generator, chances, 20)
        b = seeds_on_the_same_prompts(generator, others, 20)
        low, high = SeedSpread(a).interval
        held += low <= 0.5 <= high
        low, high = SeedPairs({seed: (a[seed], b[seed]) for seed in a}).interval
        differs += not low <= 0 <= high
    assert held >= 37
    assert differs <= 3


def test_prompts_of_seeds_are_matched_by_their_ids():
    """One seed has no known outcome of a prompt, and another has them in another order."""
    first = Rate.of_prompts([(1, 2), (0, 0), (2, 2)], prompt_ids=["a", "b", "c"])
    second = Rate.of_prompts([(2, 2), (1, 1), (0, 2)], prompt_ids=["c", "b", "a"])
    assert counts_by_prompt([first, second]) == {"a": (1, 4), "c": (4, 4), "b": (1, 1)}
    assert counts_by_prompt([first, Rate(1, 2)]) == {}
    assert first == Rate.of_prompts([(1, 2), (2, 2)])


def test_the_spread_over_training_seeds_is_kept_apart_from_that_over_prompts():
    spread = seeds(0.5, 0.7, 0.9)
    half = stats.t.ppf(0.975, 2) * 0.2 / math.sqrt(3)
    assert spread.mean == pytest.approx(0.7)
    assert spread.range == (0.5, 0.9)
    assert spread.interval.low <= (0.7 - half) * 1.001
    assert spread.interval.high == 1.0
    assert seeds(0.5, 0.6).interval is None
    assert seeds(0.5).range is None
    assert spread.text.startswith("3 training seeds: mean 70%, from 50% to 90%; 95% interval")
    assert "two seeds give no interval" in seeds(0.5, 0.6).text
    said = "1 training seed: rate 50%; variation between training runs unknown"
    assert seeds(0.5).text == said
    assert spread.as_dict()["range"] == [0.5, 0.9]
    assert seeds(0.5).as_dict()["interval"] is None


def test_a_rate_of_prompts_must_add_up():
    with pytest.raises(ConfigurationError, match="the prompts have"):
        Rate(1, 2, by_prompt=((1, 1),))


def test_prompts_of_very_different_numbers_of_trials_count_by_their_weight():
    """20 prompts of 2, 5 or 100 trials that nearly always or never succeed: 0.80 by their number.

    A file in which some rows are listed 100 times has such prompts.
    """
    rng, covered, repetitions = np.random.default_rng(6), 0, 150
    for _ in range(repetitions):
        trials = rng.choice([2, 5, 100], 20)
        won = rng.binomial(trials, rng.beta(0.05, 0.2, 20))
        low, high = clustered_interval(list(zip(won.tolist(), trials.tolist(), strict=True)))
        covered += low <= 0.2 <= high
    assert covered >= (0.93 - 2 * 0.021) * repetitions  # two standard errors


def test_success_within_some_queries_counts_prompts_as_far_as_they_were_tried():
    """Each query succeeds in a fifth of the cases; half of 1,000 prompts get a single one."""
    won = [at for at, count in enumerate((200, 80, 64, 51, 41), 1) for _ in range(count)]
    found = QueriesToSuccess(tuple(won), (1,) * 400 + (5,) * 164).won_within(5)
    assert found.known_share > 0.7
    assert found.estimate == pytest.approx(1 - 0.8**5, abs=0.002)
    assert found.interval == found.covering()
    assert math.isnan(QueriesToSuccess((1,), (1, 1)).won_within(3).estimate)
