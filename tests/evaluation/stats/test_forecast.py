import numpy as np
import pytest
from scipy.stats import betabinom, binom

from astra_rl.evaluation.stats.forecast import (
    Forecast,
    NoForecast,
    fit_beta,
    forecast_largest,
    forecast_largest_rate,
    forecast_success,
)


def drawn(seed, a=0.5, b=10.0, prompts=60, trials=10):
    rng = np.random.default_rng(seed)
    rates = rng.beta(a, b, size=prompts)
    return [(int(won), trials) for won in rng.binomial(trials, rates)]


def test_the_fit_has_the_largest_likelihood():
    prompts = drawn(0)
    found = fit_beta(prompts)

    def likelihood(a, b):
        return betabinom.logpmf([won for won, _ in prompts], 10, a, b).sum()

    best = likelihood(*found)
    for factor in (0.9, 0.98, 1.02, 1.1):
        assert likelihood(found.a * factor, found.b) <= best + 1e-3
        assert likelihood(found.a, found.b * factor) <= best + 1e-3


@pytest.mark.parametrize("tries", [1, 7, 300])
def test_success_at_many_tries_is_that_of_the_distribution(tries):
    found = fit_beta(drawn(1))
    assert found.success_at(tries) == pytest.approx(1 - betabinom.pmf(0, tries, *found))


@pytest.mark.slow
def test_success_at_fifty_times_as_many_tries_is_within_the_interval():
    truth = 1 - betabinom.pmf(0, 500, 0.5, 10.0)
    inside = 0
    for seed in range(6):
        found = forecast_success(drawn(seed), 500)
        assert isinstance(found, Forecast)
        inside += found.interval.low <= truth <= found.interval.high
    assert inside >= 5


@pytest.mark.parametrize(
    ("prompts", "tries", "reason"),
    [
        ([(1, 5)] * 9, 10, "9 prompts"),
        ([(1, 1)] * 20, 10, "one trial per prompt"),
        ([(0, 5)] * 18 + [(1, 5)] * 2, 10, "2 successes"),
        ([(1, 5)] * 20, 501, "more than 100 times the 5 trials"),
        ([(1, 5)] * 19 + [(1, 100)], 501, "more than 100 times the 5 trials"),
        ([(5, 100)] + [(0, 1)] * 19, 10, "one trial per prompt"),
    ],
)
def test_no_forecast_where_the_data_cannot_carry_it(prompts, tries, reason):
    found = forecast_success(prompts, tries)
    assert isinstance(found, NoForecast)
    assert reason in found.text


@pytest.mark.slow
def test_the_largest_of_a_hundred_times_as_many_queries_is_within_an_order_of_magnitude():
    """900 queries of four shapes of tail, and the largest probability of 90,000 held-out ones."""
    shapes = [
        lambda rng, size: np.exp(rng.normal(-12, 2, size)),
        lambda rng, size: np.exp(rng.normal(-20, 4, size)),
        lambda rng, size: rng.beta(0.2, 50, size),
        lambda rng, size: np.exp(-np.exp(rng.gumbel(2.2, 0.3, size) * -1 + 5)),
    ]
    near = []
    for shape in shapes:
        for seed in range(25):
            rng = np.random.default_rng(seed)
            sample, held_out = (np.clip(shape(rng, n), 1e-300, 0.999) for n in (900, 90_000))
            found = forecast_largest(sample, 90_000)
            assert isinstance(found, Forecast)
            near.append(abs(np.log10(found.estimate / held_out.max())) <= 1)
    assert np.mean(near) >= 0.86


@pytest.mark.parametrize(
    ("probabilities", "queries", "reason"),
    [
        ([0.1] * 99, 1000, "99 queries"),
        ([0.1] * 100, 100_001, "more than 1000 times"),
        ([0.0] * 95 + [0.1] * 5, 1000, "15 are zero and 2 are different"),
        ([0.0] * 50 + [0.1] * 50, 1000, "0 are zero and 1 are different"),
        ([1.5] + [0.1] * 100, 1000, "outside"),
    ],
)
def test_no_forecast_of_the_tail_where_there_is_none(probabilities, queries, reason):
    found = forecast_largest(probabilities, queries)
    assert isinstance(found, NoForecast)
    assert reason in found.text


@pytest.mark.parametrize("tries", [1, 30, 2000])
def test_one_prompt_is_forecast_from_repeated_sampling(tries):
    """The beta-binomial of its own successes; with none at all there is still a bound."""
    found = forecast_success([(3, 200)], tries)
    assert isinstance(found, Forecast)
    assert found.estimate == pytest.approx(1 - betabinom.pmf(0, tries, 3.5, 197.5))
    assert found.interval.low < found.estimate < found.interval.high
    never = forecast_success([(0, 200)], tries)
    assert never.interval.low == 0
    assert never.interval.high == pytest.approx(1 - (1 - 0.0188) ** tries, abs=0.002)


@pytest.mark.parametrize("rate", [1e-3, 0.02, 0.3])
def test_the_interval_of_one_prompt_covers_success_at_fifty_tries(rate):
    """By enumeration of all numbers of successes in 200 trials."""
    inside = 0.0
    for won in range(201):
        low, high = forecast_success([(won, 200)], 50).interval
        inside += binom.pmf(won, 200, rate) * (low <= 1 - (1 - rate) ** 50 <= high)
    assert inside >= 0.93


@pytest.mark.parametrize(
    ("prompts", "tries", "width"),
    [([(2, 2)] * 10, 1, 0.1), ([(2, 2)] * 10, 10, 1e-3), ([(1, 5)] * 20, 1, 0.1)],
)
def test_prompts_that_are_all_alike_have_an_interval_with_a_width(prompts, tries, width):
    low, high = forecast_success(prompts, tries).interval
    assert high - low > width


@pytest.mark.parametrize(("a", "b", "prompts", "tries"), [(97, 3, 10, 1), (0.3, 2, 10, 100)])
def test_the_interval_covers_for_few_prompts_at_the_boundary(a, b, prompts, tries):
    """A bootstrap over ten prompts of five trials at a rate of 97% covers in 73%."""
    rng = np.random.default_rng(0)
    truth = 1 - betabinom.pmf(0, tries, a, b)
    inside = given = 0
    for _ in range(40):
        won = rng.binomial(5, rng.beta(a, b, size=prompts))
        found = forecast_success([(int(each), 5) for each in won], tries)
        if isinstance(found, Forecast):
            given += 1
            inside += found.interval.low <= truth <= found.interval.high
    assert given >= 20
    assert inside >= (0.93 - 2 * 0.04) * given  # two standard errors of 40 repetitions


@pytest.mark.parametrize(("rate", "prompts", "trials"), [(0.3, 100, 5), (0.05, 40, 10)])
def test_prompts_that_never_fail_are_in_the_interval(rate, prompts, trials):
    """Half of the prompts never fail, so success at many tries is 50%.

    Beta distributions alone give at least 65% at 500 tries: the interval held 50% in none of six.
    """
    rng = np.random.default_rng(0)
    rates = np.where(rng.random(prompts) < 0.5, 0.0, rate)
    found = forecast_success([(int(n), trials) for n in rng.binomial(trials, rates)], 500)
    assert found.interval.low <= 0.5 <= found.interval.high


def test_the_largest_rates_must_differ_by_more_than_chance():
    """60 of 300 queries all fail in 30% of their trials: the largest of any number is 30%."""
    rng = np.random.default_rng(3)
    rates = np.where(np.arange(300) < 60, 0.3, 0.001)
    equal = [(int(won), 2000) for won in rng.binomial(2000, rates)]
    assert "the largest rates differ little more than by chance" in (
        forecast_largest_rate(equal, 300_000).text
    )
    rates[:60] = rng.beta(3, 7, size=60)
    different = [(int(won), 2000) for won in rng.binomial(2000, rates)]
    assert isinstance(forecast_largest_rate(different, 300_000), Forecast)


def test_unknown_trials_are_in_the_interval_or_prevent_a_forecast():
    prompts = [(1, 5)] * 40
    known = forecast_success(prompts, 10).interval
    found = forecast_success(prompts, 10, unscored=8).interval
    assert found.low == pytest.approx(known.low - 0.2)
    assert found.high == pytest.approx(min(1, known.high + 0.2))
    assert "30 of 230 trials" in forecast_success(prompts, 10, unscored=30).text
    assert forecast_success([(0, 20)], 10, unscored=20).interval.high > 0.99


def test_measured_rates_that_differ_by_chance_have_no_largest():
    rng = np.random.default_rng(0)
    trials = rng.integers(20, 60, size=200)
    alike = [
        (int(won), int(of)) for won, of in zip(rng.binomial(trials, 0.05), trials, strict=True)
    ]
    assert "by chance" in forecast_largest_rate(alike, 90_000).text
    rates = rng.beta(0.3, 4, size=300)
    few = [(int(each), 10) for each in rng.binomial(9, rates)]
    refused = forecast_largest_rate(few, 90_000)
    assert isinstance(refused, NoForecast)
    assert "trials per query are needed" in refused.text
    many = [(int(each), 200) for each in rng.binomial(199, rates)]
    top = sorted((won for won, _ in many), reverse=True)[:20]
    assert len(set(top)) < 20  # measured rates are often equal
    found = forecast_largest_rate(many, 90_000)
    assert isinstance(found, Forecast)
    assert found.estimate == forecast_largest([won / of for won, of in many], 90_000).estimate
    assert (
        "2 of 102 queries failed in all"
        in forecast_largest_rate([(5, 5)] * 2 + [(1, 5)] * 100, 1000).text
    )
    assert "99 queries" in forecast_largest_rate([(1, 5)] * 99, 1000).text
    assert "single trial" in forecast_largest_rate([(0, 1)] * 100, 1000).text


def test_one_known_prompt_of_many_is_not_the_only_prompt():
    found = forecast_success([(5, 5), *[(0, 0)] * 19], 100, unscored=95)
    assert isinstance(found, NoForecast)
    assert isinstance(forecast_success([(5, 5)], 100), Forecast)


def test_a_forecast_says_what_shape_its_interval_assumes():
    """Two kinds of prompts, 0.5 and 0.02: at 1,000 tries it covers nothing (the truth is 1)."""
    found = forecast_success([(5, 10), (0, 10), (1, 10)] * 10, 100)
    assert "if the rates of prompts are zero or follow a beta distribution)" in found.text
    assert found.as_dict()["assumes"] == found.assumes
    single = forecast_success([(3, 10)], 20)
    assert single.assumes == ""
    assert " if " not in single.text
