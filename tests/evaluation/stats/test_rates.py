import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.intervals import (
    FEW,
    Interval,
    clustered_interval,
    intervals_apart,
    proportion_interval,
    wilson_interval,
)
from astra_rl.evaluation.stats.percent import format_percent
from astra_rl.evaluation.stats.rates import Rate, describe_rate

counts = st.integers(1, 1_000_000).flatmap(
    lambda trials: st.tuples(st.integers(0, trials), st.just(trials))
)
confidences = st.floats(0.5, 0.999)


@given(counts, confidences)
def test_the_wilson_interval_agrees_with_scipy(count, confidence):
    successes, trials = count
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    actual = wilson_interval(successes, trials, confidence)
    assert actual == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0, 0.278), (0, 50, 0, 0.071), (3, 100, 0.010, 0.085)],
)
def test_the_wilson_interval_has_its_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-4)


@given(counts, confidences)
def test_the_interval_holds_the_estimate_stays_in_range_and_is_never_a_point(count, confidence):
    successes, trials = count
    low, high = wilson_interval(successes, trials, confidence)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high


@given(counts, confidences)
def test_swapping_successes_and_failures_mirrors_the_interval(count, confidence):
    successes, trials = count
    low, high = wilson_interval(successes, trials, confidence)
    mirrored = wilson_interval(trials - successes, trials, confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-15)


@given(counts)
def test_more_confidence_never_narrows_the_interval(count):
    narrow, wide = (wilson_interval(*count, confidence) for confidence in (0.8, 0.99))
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


def test_no_successes_give_a_lower_end_of_exactly_zero_and_all_an_upper_end_of_exactly_one():
    assert wilson_interval(0, 7).low == 0.0
    assert wilson_interval(7, 7).high == 1.0


def test_no_trials_tell_nothing():
    assert wilson_interval(0, 0) == Interval(0.0, 1.0)


@pytest.mark.parametrize("trials", [20, 100])
def test_95_percent_intervals_hold_the_true_rate_about_95_percent_of_the_time(trials):
    """Coverage by enumeration: sum the binomial probability of each count whose interval holds p.

    Wilson's coverage oscillates around its nominal value; away from 0 and 1 it stays above 0.9
    and is right on average (Brown, Cai and DasGupta 2001).
    """
    intervals = [wilson_interval(successes, trials) for successes in range(trials + 1)]
    coverages = []
    for step in range(10, 91):
        p = step / 100
        held = [k for k, (low, high) in enumerate(intervals) if low <= p <= high]
        coverages.append(sum(binom.pmf(held, trials, p)))
    assert min(coverages) > 0.9
    assert sum(coverages) / len(coverages) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("trials", [*range(1, 60), 100, 200, 400])
def test_the_interval_that_is_shown_holds_every_true_rate_at_least_93_percent_of_the_time(trials):
    """Enumerated: the coverage is lowest just beside the ends of the intervals, so look there."""
    ends = np.array([proportion_interval(successes, trials) for successes in range(trials + 1)])
    rates = np.concatenate([ends.ravel() - 1e-9, ends.ravel() + 1e-9])
    rates = rates[(rates > 0) & (rates < 1)]
    chances = binom.pmf(np.arange(trials + 1)[:, None], trials, rates)
    holds = (ends[:, :1] <= rates) & (rates <= ends[:, 1:])
    assert (chances * holds).sum(axis=0).min() >= 0.93


def test_wilsons_interval_alone_does_not():
    """At 20 trials, just beside the rate at which one success would bring the lower end."""
    rate = wilson_interval(1, 20).low - 1e-9
    held = [k for k in range(21) if wilson_interval(k, 20).low <= rate]
    assert sum(binom.pmf(held, 20, rate)) < 0.85


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_the_interval_are_wilsons_or_the_exact_ones_of_scipy(count):
    successes, trials = count
    wilson = wilson_interval(successes, trials)
    exact = binomtest(successes, trials).proportion_ci(0.95, method="exact")
    low, high = proportion_interval(successes, trials)
    few = 0 < successes <= FEW, 0 < trials - successes <= FEW
    assert low == pytest.approx(min(wilson.low, exact.low) if few[0] else wilson.low, abs=1e-9)
    assert high == pytest.approx(max(wilson.high, exact.high) if few[1] else wilson.high, abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "trials", "confidence"),
    [(-1, 5, 0.95), (6, 5, 0.95), (0, -1, 0.95), (1, 2, 0.0), (1, 2, 1.0), (1, 2, math.nan)],
)
def test_impossible_arguments_are_refused(successes, trials, confidence):
    with pytest.raises(ConfigurationError):
        wilson_interval(successes, trials, confidence)


def test_a_rate_leaves_unscored_trials_out_of_its_estimate_and_bounds_what_they_hide():
    rate = Rate(successes=3, trials=6, unscored=4)
    assert rate.estimate == 0.5
    assert rate.interval == proportion_interval(3, 6)
    assert rate.bounds == (0.3, 0.7)


def test_a_rate_and_its_bounds_are_phrases() -> None:
    assert Rate(2, 3).text == "67% (2 of 3), 95% interval 9% to 99.2%"
    assert Rate(0, 0, unscored=2).text.endswith("2 not known")
    assert Rate(1, 2, unscored=1).bounds_text.startswith("1 outcome is not known: ")
    assert Rate(1, 2, unscored=2).bounds_text.startswith("2 outcomes are not known: ")


def test_the_bounds_of_a_fully_scored_rate_are_its_estimate():
    assert Rate(1, 4).bounds == (0.25, 0.25)


def test_a_rate_without_scored_trials_is_missing_and_not_zero():
    rate = Rate(0, 0, unscored=3)
    assert math.isnan(rate.estimate)
    assert rate.interval == (0, 1)
    assert rate.bounds == (0, 1)
    assert Rate(0, 0).bounds == (0, 1)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_the_bounds_hold_the_estimate(successes, failures, unscored):
    rate = Rate(successes, successes + failures, unscored)
    if rate.trials:
        assert rate.bounds.low <= rate.estimate <= rate.bounds.high


@pytest.mark.parametrize("counts", [(-1, 3), (4, 3), (1, 3, -1)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ConfigurationError):
        Rate(*counts)


def test_a_rate_as_a_dict_says_all_there_is_to_say():
    assert Rate(1, 2, 2).as_dict() == {
        "successes": 1,
        "trials": 2,
        "unscored": 2,
        "prompts": 2,
        "interval": "clopper-pearson",
        "estimate": 0.5,
        "estimator": "share of known",
        "low": proportion_interval(1, 2).low,
        "high": proportion_interval(1, 2).high,
        "lowest": 0.25,
        "highest": 0.75,
    }


def test_intervals_are_apart_only_without_a_common_point():
    assert intervals_apart(Interval(0.1, 0.2), Interval(0.3, 0.4))
    assert intervals_apart(Interval(0.3, 0.4), Interval(0.1, 0.2))
    assert not intervals_apart(Interval(0.1, 0.3), Interval(0.2, 0.4))
    assert not intervals_apart(Interval(0.1, 0.2), Interval(0.2, 0.4))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0%"),
        (0.0000001, "0.1%"),
        (0.004, "0.4%"),
        (0.039, "4%"),
        (0.5, "50%"),
        (0.996, "99.6%"),
        (0.9999999, "99.9%"),
        (1.0, "100%"),
        (math.nan, "\N{EM DASH}"),
    ],
)
def test_percentages_never_round_to_certainty(value, text):
    assert format_percent(value) == text


@pytest.mark.parametrize(
    ("successes", "trials", "method"),
    [
        (3, 6, "clopper-pearson"),
        (0, 6, "clopper-pearson"),
        (6, 6, "clopper-pearson"),
        (500, 1000, "wilson"),
        (0, 0, "none"),
        (5, 1000, "wilson and clopper-pearson"),
    ],
)
def test_an_interval_is_named_after_the_method_that_computed_its_ends(successes, trials, method):
    rate = Rate(successes, trials)
    assert rate.method == rate.as_dict()["interval"] == method
    if trials and "and" not in method:
        scipys = {"clopper-pearson": "exact", "wilson": "wilson"}[method]
        expected = binomtest(successes, trials).proportion_ci(0.95, method=scipys)
        assert rate.interval == pytest.approx((expected.low, expected.high), abs=1e-9)
    if trials:
        assert f"{rate.method_text})" in describe_rate(rate)


def test_three_of_six_is_described_as_what_it_is():
    assert describe_rate(Rate(3, 6)) == "50% (3 of 6, 95% interval 12% to 88%, Clopper-Pearson)"


@pytest.mark.parametrize(("trials", "truth"), [(100, 0.15), (200, 0.1), (200, 0.3), (200, 0.5)])
def test_the_covering_interval_holds_the_rate_whatever_makes_outcomes_unknown(trials, truth):
    """A judge that declines to score every success, or every failure: enumerated."""
    counts = np.arange(trials + 1)
    weights = binom.pmf(counts, trials, truth)
    high = np.array([Rate(0, trials - u, u).covering().high for u in counts.tolist()])
    assert weights[high < truth].sum() <= 0.035
    low = np.array([Rate(n, n, trials - n).covering().low for n in counts.tolist()])
    assert weights[low > truth].sum() <= 0.035


def test_unknown_outcomes_belong_to_their_prompts():
    known = [(0, 4), (3, 4), (0, 0), (1, 5)]
    rate = Rate.of_prompts(known, 9, unscored_by_prompt=[1, 1, 5, 0])
    assert rate.by_prompt == ((0, 4), (3, 4), (1, 5))
    assert rate.unscored_by_prompt == (1, 1, 0, 5)
    # Two more were never made: each counts as a prompt of its own.
    assert rate.covering() == Interval(
        clustered_interval([(0, 5), (3, 5), (1, 5), (0, 5), (0, 1), (0, 1)]).low,
        clustered_interval([(1, 5), (4, 5), (1, 5), (5, 5), (1, 1), (1, 1)]).high,
    )
