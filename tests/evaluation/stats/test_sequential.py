import functools

import numpy as np
import pytest
from scipy.special import betaln

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.intervals import wilson_interval
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.sequential import confidence_sequence, log_e_value


@pytest.mark.parametrize(("won", "of"), [(0, 40), (3, 50), (30, 60), (200, 200)])
def test_for_values_of_zero_and_one_it_is_the_beta_mixture(won, of):
    low, high = confidence_sequence([1.0] * won + [0.0] * (of - won))
    grid = np.linspace(1e-6, 1 - 1e-6, 100_001)
    wealth = (
        betaln(won + 0.5, of - won + 0.5)
        - betaln(0.5, 0.5)
        - won * np.log(grid)
        - (of - won) * np.log1p(-grid)
    )
    inside = grid[wealth < np.log(20)]
    assert low == pytest.approx(inside[0], abs=1e-3)
    assert high == pytest.approx(inside[-1], abs=1e-3)


@functools.cache
def evidence(won, of, rate):
    return log_e_value([1.0] * won + [0.0] * (of - won), rate)


def test_the_interval_has_the_rates_without_evidence_against_them():
    low, high = confidence_sequence([1.0] * 7 + [0.5] * 4 + [0.0] * 20)
    for rate, against in ((low * 0.99, 1), (low * 1.01, 0), (high * 0.99, 0), (high * 1.01, 1)):
        found = log_e_value([1.0] * 7 + [0.5] * 4 + [0.0] * 20, rate)
        assert (found >= np.log(20)) == bool(against)


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5])
def test_it_covers_at_all_looks_together_where_the_usual_interval_does_not(rate):
    rng = np.random.default_rng(0)
    looks = [*range(10, 100, 10), *range(100, 500, 40)]
    paths = (rng.random((500, max(looks))) < rate).cumsum(axis=1)
    missed, usual = np.zeros(500, bool), np.zeros(500, bool)
    for of in looks:
        counts = paths[:, of - 1].tolist()
        missed |= [evidence(k, of, rate) >= np.log(20) for k in counts]
        plain = {k: wilson_interval(k, of) for k in set(counts)}
        usual |= [not plain[k].low <= rate <= plain[k].high for k in counts]
    assert missed.mean() <= 0.05
    assert usual.mean() > 0.1


def test_rates_of_prompts_are_bounded_values():
    """Three trials per prompt that are all alike: the interval is that of the prompts."""
    alike = confidence_sequence([1.0] * 10 + [0.0] * 30)
    assert Rate.of_prompts([(3, 3)] * 10 + [(0, 3)] * 30, sequential=True).interval == alike
    different = confidence_sequence([1 / 3] * 30 + [0.0] * 10)
    assert np.ptp(different) < np.ptp(alike)


def test_unknown_outcomes_widen_the_sequence_to_all_they_could_be():
    rate = Rate.of_prompts([(1, 1)] * 5 + [(0, 1)] * 35, unscored=10, sequential=True)
    assert rate.method == "confidence sequence"
    worst = confidence_sequence([1.0] * 15 + [0.0] * 35)
    assert rate.covering().high >= worst.high - 1e-9
    assert rate.covering().low < rate.interval.low


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ConfigurationError, match="outside"):
        confidence_sequence([1.2])
    with pytest.raises(ConfigurationError, match="confidence=1"):
        confidence_sequence([0.2], 1)
    assert confidence_sequence([]) == (0, 1)


@pytest.mark.parametrize("rate", [0.05 / 3, 0.15])
def test_far_from_the_gate_it_needs_much_fewer_conversations_than_a_fixed_number(rate):
    """A gate at 5%; the fixed number tells a rate of 2.5% from 5% with a power of 90%."""
    fixed = ((1.96 * np.sqrt(0.05 * 0.95) + 1.28 * np.sqrt(0.025 * 0.975)) / 0.025) ** 2
    looks = np.arange(16, fixed, 16, dtype=int)
    paths = (np.random.default_rng(0).random((100, looks[-1])) < rate).cumsum(axis=1)
    needed = [
        next(
            (of for of in looks if evidence(int(path[of - 1]), int(of), 0.05) >= np.log(20)), fixed
        )
        for path in paths
    ]
    assert np.mean(needed) <= 0.6 * fixed
