"""Numbers of classification against scikit-learn, agreement against a published example."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.agreement import alpha_estimate, krippendorff_alpha
from astra_rl.evaluation.stats.classification import Confusion, confusion, decisions
from astra_rl.evaluation.stats.resampling import bootstrap
from astra_rl.evaluation.stats.score_calibration import (
    brier,
    brier_estimate,
    calibration_error,
    calibration_error_estimate,
    reliability,
)
from astra_rl.evaluation.stats.score_curves import (
    auroc,
    auroc_estimate,
    average_precision,
    average_precision_estimate,
    best_threshold,
    best_threshold_estimates,
    precision_recall_curve,
    roc_curve,
)

metrics = pytest.importorskip("sklearn.metrics")


def data(seed, size=200, digits=2):
    """Random rows; rounding makes ties, which is where implementations differ."""
    rng = np.random.default_rng(seed)
    truth = rng.random(size) < rng.uniform(0.1, 0.9)
    scores = np.clip(rng.normal(0.35 + 0.3 * truth, 0.25), 0, 1)
    return truth, scores.round(digits)


seeds = pytest.mark.parametrize("seed", range(8))


@seeds
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
def test_decisions_are_those_of_scikit_learn(seed, threshold):
    truth, scores = data(seed)
    called = scores >= threshold
    found = decisions(confusion(truth, scores, threshold))
    expected = {
        "accuracy": metrics.accuracy_score(truth, called),
        "precision": metrics.precision_score(truth, called),
        "recall": metrics.recall_score(truth, called),
        "specificity": metrics.recall_score(~truth, ~called),
        "f1": metrics.f1_score(truth, called),
    }
    assert {name: each.value for name, each in found.items()} == pytest.approx(expected)
    assert all(each.low <= each.value <= each.high for each in found.values())


@seeds
@pytest.mark.parametrize("digits", [0, 1, 6])
def test_ranking_numbers_are_those_of_scikit_learn(seed, digits):
    truth, scores = data(seed, digits=digits)
    assert auroc(truth, scores) == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert average_precision(truth, scores) == pytest.approx(
        metrics.average_precision_score(truth, scores)
    )
    assert brier(truth, scores) == pytest.approx(metrics.brier_score_loss(truth, scores))


@seeds
def test_curves_are_those_of_scikit_learn(seed):
    truth, scores = data(seed)
    fpr, tpr, thresholds = metrics.roc_curve(truth, scores, drop_intermediate=False)
    ours = roc_curve(truth, scores)
    assert [p.x for p in ours] == pytest.approx(fpr)
    assert [p.y for p in ours] == pytest.approx(tpr)
    assert [p.threshold for p in ours[1:]] == pytest.approx(thresholds[1:])
    precision, recall, _ = metrics.precision_recall_curve(truth, scores)
    points = precision_recall_curve(truth, scores)[::-1]
    # Theirs ends in the point (0, 1), which no threshold gives.
    assert [p.x for p in points] == pytest.approx(recall[:-1])
    assert [p.y for p in points] == pytest.approx(precision[:-1])


@seeds
def test_the_calibration_curve_is_that_of_scikit_learn(seed):
    from sklearn.calibration import calibration_curve

    truth, scores = data(seed, digits=6)
    share, mean = calibration_curve(truth, scores, n_bins=10, strategy="uniform")
    found = reliability(truth, scores)
    assert [each.mean_score for each in found] == pytest.approx(mean)
    assert [each.positives.estimate for each in found] == pytest.approx(share)
    weights = np.array([each.positives.trials for each in found]) / len(truth)
    assert calibration_error(truth, scores) == pytest.approx(
        float((abs(mean - share) * weights).sum())
    )


@pytest.mark.slow
@seeds
def test_the_best_threshold_has_the_highest_f1_of_all(seed):
    truth, scores = data(seed)
    threshold, f1 = best_threshold(truth, scores)
    every = [metrics.f1_score(truth, scores >= t) for t in np.unique(scores)]
    assert f1 == pytest.approx(max(every))
    assert metrics.f1_score(truth, scores >= threshold) == pytest.approx(f1)


def test_the_best_threshold_of_two_scores_lies_between_them():
    truth = np.array([True, False, True])
    assert best_threshold(truth, np.array([1.0, 0.0, 1.0])) == (0.5, 1.0)
    assert math.isnan(best_threshold(~truth & truth, np.ones(3))[0])


def test_f1_at_the_best_threshold_is_lower_on_rows_that_did_not_choose_it():
    """Scores of pure noise: in the sample some threshold always looks good."""
    rng = np.random.default_rng(0)
    truth, scores = rng.random(60) < 0.3, rng.random(60)
    _, too_good = best_threshold(truth, scores)
    threshold, honest = best_threshold_estimates(truth, scores, resamples=300)
    assert honest.value < too_good
    assert honest.low < honest.value < honest.high
    assert threshold.low < threshold.high


def test_perfect_calls_still_have_an_interval():
    found = decisions(Confusion(20, 0, 20, 0))
    assert all(each.value == 1 and each.low < 0.97 for each in found.values())
    perfect = auroc_estimate(np.arange(40) >= 20, np.arange(40) / 40)
    assert perfect.value == perfect.high == 1
    assert 0.8 < perfect.low < 0.99
    worst = auroc_estimate(np.arange(40) < 20, np.arange(40) / 40)
    assert (worst.low, worst.high) == pytest.approx((0, 1 - perfect.low))


def test_the_interval_of_f1_is_that_of_the_overlap():
    """10 of 20 rows that are positive or predicted positive: J = 1/2, F1 = 2/3; exact ends of J."""
    f1 = decisions(Confusion(10, 4, 100, 6))["f1"]
    low, high = stats.beta.ppf(0.025, 10, 11), stats.beta.ppf(0.975, 11, 10)
    assert f1.value == pytest.approx(2 / 3)
    assert (f1.low, f1.high) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


@pytest.mark.parametrize("rate", [0.95, 0.98, 0.99])
def test_intervals_of_recall_and_specificity_near_one_cover_by_enumeration(rate):
    for rows in (20, 60):
        chance = stats.binom.pmf(np.arange(rows + 1), rows, rate)
        for name in ("recall", "specificity"):
            found = [decisions(Confusion(k, rows - k, k, rows - k))[name] for k in range(rows + 1)]
            inside = [each.low <= rate <= each.high for each in found]
            assert chance[inside].sum() >= 0.93


@pytest.mark.slow
def test_intervals_of_a_calibrated_judge_cover_the_truth():
    """Scores are beta-distributed and are the probabilities of the labels: the error is 0."""
    rng = np.random.default_rng(1)
    true_brier = 1 / 6  # mean of s(1 - s) for uniform scores
    repetitions = 60
    hits = dict.fromkeys(("brier", "calibration_error", "average_precision"), 0)
    for _ in range(repetitions):
        scores = rng.random(60)
        truth = rng.random(60) < scores
        found = brier_estimate(truth, scores)
        hits["brier"] += found.low <= true_brier <= found.high
        found = calibration_error_estimate(truth, scores, resamples=100)
        hits["calibration_error"] += found.low == 0 and found.high > 0
        found = average_precision_estimate(truth, scores, resamples=50)
        # P(y | s >= t) = (1 + t) / 2 and recall 1 - t**2: the integral over the recall is 5 / 6.
        hits["average_precision"] += found.low <= 5 / 6 <= found.high
    assert min(hits.values()) >= 0.91 * repetitions, hits


def test_the_interval_of_the_calibration_error_covers_a_judge_that_is_not_calibrated():
    """Uniform scores s whose labels have the probability s squared: the error is 1/6."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(40):
        scores = rng.random(400)
        truth = rng.random(400) < scores**2
        found = calibration_error_estimate(truth, scores, resamples=100)
        hits += found.low <= 1 / 6 <= found.high
        assert found.low > 0
    assert hits >= 37


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_the_interval_of_the_auroc_covers_the_truth_nineteen_times_in_twenty(shift):
    """Normal scores, d' = shift: the true area is Phi(shift / sqrt 2)."""
    from statistics import NormalDist

    rng = np.random.default_rng(3)
    area = NormalDist().cdf(shift / math.sqrt(2))
    truth = np.arange(50) < 20
    hits = 0
    for _ in range(1000):
        found = auroc_estimate(truth, rng.normal(shift * truth))
        hits += found.low <= area <= found.high
    assert hits >= 930


def test_a_number_that_cannot_be_is_missing_and_never_zero():
    none = np.zeros(0, dtype=bool)
    empty = np.zeros(0)
    assert math.isnan(brier(none, empty))
    assert math.isnan(calibration_error(none, empty))
    assert math.isnan(auroc(np.ones(3, dtype=bool), np.ones(3)))
    assert math.isnan(average_precision(np.zeros(3, dtype=bool), np.ones(3)))
    found = decisions(confusion(none, empty, 0.5))
    assert all(math.isnan(e.value) and (e.low, e.high) == (0, 1) for e in found.values())
    assert math.isnan(auroc_estimate(none, empty).value)
    assert math.isnan(best_threshold_estimates(none, empty)[1].value)
    assert precision_recall_curve(none, empty) == []


def test_a_bootstrap_that_says_nothing_gives_no_interval():
    truth = np.array([True, False] * 10)
    found = bootstrap(truth, truth.astype(float), {"brier": brier}, resamples=50)["brier"]
    assert found.value == 0
    assert math.isnan(found.low)
    lopsided = np.array([True] + [False] * 19)
    often_missing = bootstrap(lopsided, lopsided * 1.0, {"auroc": auroc}, resamples=100)["auroc"]
    assert math.isnan(often_missing.low)


def test_a_bootstrap_repeats_with_its_seed_and_widens_with_fewer_rows():
    truth, scores = data(0, size=400)
    wide = bootstrap(truth[:40], scores[:40], {"brier": brier}, resamples=300)["brier"]
    narrow = bootstrap(truth, scores, {"brier": brier}, resamples=300)["brier"]
    assert narrow == bootstrap(truth, scores, {"brier": brier}, resamples=300)["brier"]
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


N = math.nan
# Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, section C: 4 observers, 12 units.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(level, expected):
    units = list(zip(*PUBLISHED, strict=True))
    assert krippendorff_alpha(units, level) == pytest.approx(expected, abs=5e-4)


def test_alpha_of_two_raters_by_hand():
    """Pairs 11 11 00 01: D_o = 2/8; values 1 five times, 0 three: D_e = 2*5*3/(8*7)."""
    assert krippendorff_alpha([(1, 1), (1, 1), (0, 0), (0, 1)]) == pytest.approx(
        1 - (2 / 8) / (30 / 56)
    )


def test_alpha_is_one_for_agreement_and_negative_for_contradiction():
    assert krippendorff_alpha([(0, 0), (1, 1)]) == 1
    assert krippendorff_alpha([(0, 1), (1, 0)]) < 0
    assert math.isnan(krippendorff_alpha([(1, 1), (1, 1)]))
    assert math.isnan(krippendorff_alpha([(1, N), (N, 0)]))
    assert math.isnan(krippendorff_alpha([]))
    with pytest.raises(ConfigurationError, match="level='ordinal'"):
        krippendorff_alpha([(1, 1)], "ordinal")


def test_alpha_has_an_interval_over_units():
    rng = np.random.default_rng(0)
    ratings = [
        (float(x), float(x if rng.random() < 0.8 else 1 - x)) for x in rng.integers(2, size=80)
    ]
    found = alpha_estimate(ratings, resamples=200)
    assert found.low < found.value < found.high
    assert found == alpha_estimate(ratings, resamples=200)


ROWS = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=30)


@settings(max_examples=60)
@given(ROWS)
def test_every_number_is_in_its_range_or_missing(rows):
    truth = np.array([each for each, _ in rows])
    scores = np.array([each for _, each in rows])
    values = [auroc(truth, scores), average_precision(truth, scores), brier(truth, scores)]
    values += [calibration_error(truth, scores), *best_threshold(truth, scores)]
    values += [each.value for each in decisions(confusion(truth, scores, 0.5)).values()]
    assert all(math.isnan(value) or -1e-9 <= value <= 1 + 1e-9 for value in values)
    found = auroc_estimate(truth, scores)
    assert math.isnan(found.value) or 0 <= found.low <= found.value <= found.high <= 1
