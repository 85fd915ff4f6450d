"""Estimators against packages of statisticians; each test is skipped without its package.

CI has statsmodels and saber-risk (`requirements/ci.txt`); ppi-python and pymbar are run where they
are installed.
"""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import betaln

from astra_rl.evaluation.stats.forecast import fit_beta, forecast_success
from astra_rl.evaluation.stats.importance import Sample, failure_probability
from astra_rl.evaluation.stats.intervals import (
    clustered_interval,
    proportion_interval,
    wilson_interval,
)
from astra_rl.evaluation.stats.labelled_rate import Group, cohen_kappa, labelled_rate
from astra_rl.evaluation.stats.paired import compare_pairs
from astra_rl.evaluation.stats.paired_tests import holm
from astra_rl.evaluation.stats.sequential import confidence_sequence, log_e_value

pytestmark = pytest.mark.slow  # the packages take seconds to import


@pytest.mark.parametrize("trials", [1, 7, 60, 900])
def test_intervals_of_a_proportion_are_those_of_statsmodels(trials):
    confint = pytest.importorskip("statsmodels.stats.proportion").proportion_confint
    for successes in {0, 1, trials // 3, trials - 1, trials}:
        wilson = confint(successes, trials, 0.05, method="wilson")
        assert wilson_interval(successes, trials) == pytest.approx(wilson, abs=1e-12)
        exact = confint(successes, trials, 0.05, method="beta")
        low, high = proportion_interval(successes, trials)
        assert low >= min(wilson[0], exact[0]) - 1e-9
        assert high <= max(wilson[1], exact[1]) + 1e-9


@pytest.mark.parametrize("counts", [(5, 9, 2, 30), (0, 1, 0, 4), (3, 0, 7, 0), (50, 20, 21, 9)])
def test_the_test_of_paired_rates_is_mcnemars_exact_test_of_statsmodels(counts):
    mcnemar = pytest.importorskip("statsmodels.stats.contingency_tables").mcnemar
    both, only_a, only_b, neither = counts
    expected = mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
    pairs = [
        *[(True, True)] * both, *[(True, False)] * only_a,
        *[(False, True)] * only_b, *[(False, False)] * neither,
    ]  # fmt: skip
    assert compare_pairs([[each] for each in pairs]).p_value == pytest.approx(expected)


def test_holms_adjustment_and_cohens_kappa_are_those_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    from statsmodels.stats.inter_rater import cohens_kappa

    p_values = [0.01, 0.04, 0.03, 0.5, 0.002]
    expected = multitest.multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected.tolist())
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 3 + [(False, False)] * 12
    table = [[20, 5], [3, 12]]
    assert cohen_kappa(pairs) == pytest.approx(cohens_kappa(table).kappa)


def test_the_clustered_interval_is_about_as_wide_as_that_of_cluster_robust_errors():
    """200 prompts of five trials, correlation 0.3; neither much narrower nor much wider."""
    api = pytest.importorskip("statsmodels.api")
    generator = np.random.default_rng(0)
    rates = generator.beta(0.3 * 7 / 3, 0.7 * 7 / 3, size=200)
    won = generator.binomial(5, rates)
    trials = np.concatenate([[1] * k + [0] * (5 - k) for k in won])
    groups = np.repeat(np.arange(200), 5)
    fit = api.OLS(trials, np.ones((1000, 1))).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
    )
    expected = fit.conf_int()[0]
    found = clustered_interval([(int(k), 5) for k in won])
    assert sum(won) / 1000 == pytest.approx(float(fit.params[0]))
    assert np.ptp(found) == pytest.approx(np.ptp(expected), rel=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_the_beta_binomial_and_its_forecast_are_those_of_saber(seed):
    saber = pytest.importorskip("saber")
    generator = np.random.default_rng(seed)
    rates = generator.beta(0.5, 6.0, size=300)
    won = generator.binomial(20, rates)
    a, b = saber.fit_beta_binomial_MLE(won.astype(float), 20)
    found = fit_beta([(int(k), 20) for k in won])
    assert found == pytest.approx((a, b), rel=0.05)
    tries = 500
    expected = 1 - math.exp(betaln(a, b + tries) - betaln(a, b))
    forecast = forecast_success([(int(k), 20) for k in won], tries)
    assert forecast.estimate == pytest.approx(expected, rel=0.02)
    # SABER's formula is the limit of many tries.
    assert forecast.estimate == pytest.approx(float(saber.predict_plugin(tries, a, b)), rel=0.05)
    assert forecast.interval.low <= expected <= forecast.interval.high


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.95, 0.97), (0.7, 0.8)])
def test_the_rate_from_labels_and_calls_is_that_of_ppi_python(sensitivity, specificity):
    ppi = pytest.importorskip("ppi_py")
    generator = np.random.default_rng(1)
    truth = generator.random(4000) < 0.3
    right = generator.random(4000)
    calls = np.where(truth, right < sensitivity, right >= specificity)
    labelled = np.arange(4000) < 400
    y, yhat, rest = truth[labelled] * 1.0, calls[labelled] * 1.0, calls[~labelled] * 1.0
    expected = float(np.squeeze(ppi.ppi_mean_pointestimate(y, yhat, rest)))
    low, high = (float(np.squeeze(end)) for end in ppi.ppi_mean_ci(y, yhat, rest, alpha=0.05))
    groups = [
        Group(
            call,
            (1,) * int((calls == call).sum()),
            tuple((float(each), 1) for each in truth[labelled & (calls == call)]),
        )
        for call in (1, 0)
    ]
    found = labelled_rate(groups, wilson_interval(int(calls.sum()), len(calls)))
    assert found.estimate == pytest.approx(expected, abs=0.2 * (high - low))
    assert np.ptp(found.interval) == pytest.approx(high - low, rel=0.15)


@pytest.mark.filterwarnings("ignore")
def test_importance_sampling_agrees_with_pymbar_and_is_no_less_precise():
    """MBAR does not use that the probabilities of both models sum to one, so it errs more."""
    pymbar = pytest.importorskip("pymbar")
    generator = np.random.default_rng(0)
    laws = np.array([[0.003, 0.2, 0.797], [0.4, 0.2, 0.4]])
    drawn = np.concatenate([generator.choice(3, size=1500, p=law) for law in laws])
    fails = drawn == 0
    energies = -np.log(laws[:, drawn])
    mbar = pymbar.MBAR(energies, [1500, 1500])
    expected = mbar.compute_expectations(fails.astype(float))
    samples = [
        Sample(bool(failed), -float(p), -float(q), row < 1500, kind=0)
        for row, (failed, p, q) in enumerate(zip(fails, *energies, strict=True))
    ]
    found = failure_probability(samples)
    error = float(expected["sigma"][0])
    assert abs(found.estimate - float(expected["mu"][0])) <= 2.5 * error
    assert abs(found.estimate - 0.003) <= 2.5 * found.error
    assert found.error <= 1.1 * error


@pytest.mark.parametrize(("won", "of"), [(0, 40), (3, 60), (30, 60), (400, 1000)])
def test_the_confidence_sequence_is_that_of_the_beta_mixture_in_closed_form(won, of):
    """Robbins' mixture over Jeffreys' prior, by scipy's beta function."""

    def log_wealth(rate):
        return (
            betaln(won + 0.5, of - won + 0.5)
            - betaln(0.5, 0.5)
            - won * math.log(rate)
            - (of - won) * math.log1p(-rate)
        )

    values = [1.0] * won + [0.0] * (of - won)
    for rate in (0.02, 0.3, 0.7):
        assert log_e_value(values, rate) == pytest.approx(log_wealth(rate), rel=0.01, abs=0.05)
    low, high = confidence_sequence(values)
    limit = math.log(20)
    assert high == pytest.approx(
        brentq(lambda m: log_wealth(m) - limit, max(won / of, 1e-9), 1 - 1e-12), abs=2e-3
    )
    if won:
        expected = brentq(lambda m: log_wealth(m) - limit, 1e-12, won / of)
        assert low == pytest.approx(expected, abs=2e-3)
