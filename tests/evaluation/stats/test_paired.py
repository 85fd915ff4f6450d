"""Two rates on the same prompts: against SciPy, enumeration and simulation."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from astra_rl.evaluation.stats import paired_tests
from astra_rl.evaluation.stats.intervals import student_tails
from astra_rl.evaluation.stats.paired import compare_pairs, compare_trials
from astra_rl.evaluation.stats.paired_tables import PromptTable, PromptTrials
from astra_rl.evaluation.stats.paired_tests import (
    newcombe_interval,
    permutation_test,
    sign_flip_test,
)

COUNTS = st.tuples(*[st.integers(0, 12)] * 4)


@given(st.integers(0, 20), st.integers(0, 20))
def test_with_one_trial_per_prompt_the_p_value_is_mcnemars_exact_one(only_a, only_b):
    p = sign_flip_test([1] * only_a + [-1] * only_b + [0] * 3)
    if only_a + only_b:
        assert p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    else:
        assert p == 1.0


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_the_p_value_is_the_share_of_sign_flips_at_least_as_far_from_zero(leads):
    total = abs(sum(leads))
    flips = [
        abs(sum(sign * lead for sign, lead in zip(signs, leads, strict=True)))
        for signs in product((-1, 1), repeat=len(leads))
    ]
    assert sign_flip_test(leads) == pytest.approx(sum(f >= total for f in flips) / len(flips))


@given(COUNTS)
def test_the_interval_of_the_difference_holds_it_and_swapping_sides_mirrors_it(counts):
    both, only_a, only_b, neither = counts
    low, high = newcombe_interval(*counts)
    pairs = sum(counts)
    assert -1 <= low < high <= 1
    if pairs:
        assert low <= (only_a - only_b) / pairs <= high
    mirrored = newcombe_interval(both, only_b, only_a, neither)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((low, high))


def test_the_interval_has_the_value_that_newcombe_published():
    """Table II of the paper, method 10, the data of its first row: 36, 12, 2, 0."""
    assert newcombe_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_pairs_are_counted_by_what_became_of_them():
    comparison = compare_pairs([[(True, True)], [(True, False)], [(True, False)], [(False, False)]])
    assert comparison.counts == (1, 2, 0, 1)
    assert comparison.difference == 0.5
    assert comparison.prompts == 4


def test_without_pairs_nothing_is_known():
    comparison = compare_pairs([], unscored=3)
    assert math.isnan(comparison.difference)
    assert comparison.interval == (-1.0, 1.0)
    assert math.isnan(comparison.p_value)
    assert comparison.unscored == 3


def test_trials_of_one_prompt_are_no_more_evidence_than_they_are():
    once = compare_pairs([[(True, False)]] * 3 + [[(False, False)]] * 7)
    copied = compare_pairs([[(True, False)] * 10] * 3 + [[(False, False)] * 10] * 7)
    assert copied.p_value == once.p_value
    width = [each.interval.high - each.interval.low for each in (once, copied)]
    assert width[1] > 0.8 * width[0]


def trials(*outcomes):
    return dict(enumerate(outcomes))


def test_one_trial_against_five_compares_the_rates_of_each_prompt():
    """50 prompts; A succeeds at 10, B in the first of five trials at 40: 20% against 16%."""
    prompts = [
        PromptTrials(trials(at < 10), trials(at < 40, False, False, False, False))
        for at in range(50)
    ]
    found = compare_trials(prompts)
    assert found.difference == pytest.approx(0.20 - 0.16)
    assert found.prompts == 50
    assert found.interval.low < 0 < found.interval.high
    assert found.p_value > 0.2


def test_equal_numbers_of_trials_give_the_paired_comparison():
    pairs = [[(True, False), (True, True)], [(False, False), (True, False)]]
    prompts = [
        PromptTrials(trials(*(a for a, _ in each)), trials(*(b for _, b in each))) for each in pairs
    ]
    assert compare_trials(prompts) == compare_pairs(pairs)


@given(
    st.lists(
        st.tuples(st.lists(st.booleans(), min_size=1, max_size=3),
                  st.lists(st.booleans(), min_size=4, max_size=5)),
        min_size=1,
        max_size=3,
    )
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_the_permutation_test_is_the_share_of_all_assignments(prompts):
    """Every way to choose which of a prompt's trials are those of A, enumerated."""
    tables = [(sum(a), len(a), sum(b), len(b)) for a, b in prompts]
    observed = abs(sum(Fraction(a, n) - Fraction(b, m) for a, n, b, m in tables))
    found = []
    for a, b in prompts:
        together = [*a, *b]
        found.append(
            [
                Fraction(sum(together[at] for at in chosen), len(a))
                - Fraction(sum(x for at, x in enumerate(together) if at not in chosen), len(b))
                for chosen in combinations(range(len(together)), len(a))
            ]
        )
    far = total = 0
    for each in product(*(list(Counter(law).items()) for law in found)):
        ways = math.prod(count for _, count in each)
        total += ways
        far += ways * (abs(sum(value for value, _ in each)) >= observed)
    assert permutation_test(tables) == pytest.approx(far / total)


def test_unknown_outcomes_are_covered_by_the_bounds():
    """A fails always, B fails in 6 of 10 and is unscored in 4: B may be at 40%."""
    prompts = [PromptTrials(trials(False), trials(None if at < 4 else False)) for at in range(10)]
    found = compare_trials(prompts, unscored=4)
    assert found.difference == 0
    assert found.bounds == (-0.4, 0.0)
    assert found.interval.low < -0.4
    assert math.isnan(found.p_value)
    assert found.unscored_share == 0.4


@pytest.mark.slow
@pytest.mark.parametrize("trials", [1, 4])
def test_95_percent_intervals_hold_the_true_difference_at_least_93_percent_of_the_time(trials):
    generator = np.random.default_rng(2)
    # mean of clip(h + 0.2) - h over Beta(1, 2)
    truth = stats.beta(1, 2).expect(lambda h: np.minimum(h + 0.2, 1) - h)
    held = 0
    for _ in range(500):
        hard = generator.beta(1, 2, 40)
        a = generator.random((40, trials)) < np.clip(hard + 0.2, 0, 1)[:, None]
        b = generator.random((40, trials)) < hard[:, None]
        pairs = [
            list(zip(map(bool, x), map(bool, y), strict=True)) for x, y in zip(a, b, strict=True)
        ]
        low, high = compare_pairs(pairs).interval
        held += low <= truth <= high
    assert held / 500 >= 0.93


OUTCOME = st.sampled_from([True, False, None])
SIDE = st.dictionaries(st.integers(0, 4), OUTCOME, min_size=1, max_size=4)


@given(SIDE, SIDE)
def test_the_table_of_a_prompt_counts_its_trials(a, b):
    table = PromptTable.of(a, b)
    for side, counts in ((a, table.a), (b, table.b)):
        assert counts == tuple(list(side.values()).count(each) for each in (True, False, None))
    shared = [(a[trial], b[trial]) for trial in a.keys() & b.keys()]
    known = [each for each in shared if None not in each]
    assert table.known == tuple(
        known.count(each) for each in ((True, True), (True, False), (False, True), (False, False))
    )
    assert table.unscored == len(shared) - len(known)
    assert table.trials == len(a) + len(b)
    for won in (True, False):
        filled = [
            {trial: value if each is None else each for trial, each in side.items()}
            for side, value in ((a, won), (b, not won))
        ]
        assert table.imputed(a=won, b=not won) == PromptTable.of(*filled)


LEADS = st.lists(st.integers(-5, 5), min_size=1, max_size=40)


@given(LEADS)
def test_long_convolutions_give_the_same_p_values(leads):
    tables = [(max(0, lead), 5, max(0, -lead), 4) for lead in leads if lead >= -4] or [(1, 2, 1, 3)]
    expected = sign_flip_test(leads), permutation_test(tables)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired_tests, "_DIRECT", 0)
        found = sign_flip_test(Counter(leads)), permutation_test(Counter(tables))
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_million_prompts_are_compared_in_a_moment():
    leads = Counter({1: 300_000, -1: 299_000, 2: 1000, -3: 500, 0: 400_000})
    total = sum(lead * count for lead, count in leads.items())
    spread = math.sqrt(sum(lead**2 * count for lead, count in leads.items()))
    assert sign_flip_test(leads) == pytest.approx(2 * stats.norm.sf(total / spread), rel=0.01)


def test_equal_rates_of_sides_that_are_better_at_different_prompts_are_no_difference():
    """A wins all trials of ten prompts and B of four: two kinds of prompts, not 126 trials.

    The permutation within prompts alone gives 2e-11.
    """
    lost, won = trials(*[False] * 4), trials(*[True] * 5)
    prompts = [PromptTrials(trials(*[True] * 4), trials(*[False] * 5))] * 10
    prompts += [PromptTrials(lost, won)] * 4
    found = compare_trials(prompts)
    assert found.p_value == pytest.approx(stats.binomtest(10, 14).pvalue)
    assert found.interval.low < 0 < found.interval.high


@pytest.mark.parametrize(("of_a", "of_b"), [(1, 5), (4, 5)])
def test_p_values_of_unequal_numbers_of_trials_are_not_too_small(of_a, of_b):
    generator, small, repetitions = np.random.default_rng(0), 0, 100
    for _ in range(repetitions):
        a, b = generator.random((2, 20)) < 0.5  # prompts that always, or never, succeed
        prompts = [
            PromptTrials(trials(*[bool(x)] * of_a), trials(*[bool(y)] * of_b))
            for x, y in zip(a, b, strict=True)
        ]
        small += compare_trials(prompts).p_value < 0.05
    assert small <= 0.05 * repetitions + 2 * math.sqrt(0.05 * 0.95 * repetitions)


@pytest.mark.parametrize(("prompts", "most"), [(10, 0.05), (40, 0.08)])
def test_equal_rates_whose_differences_are_of_one_sign_are_not_told_apart(prompts, most):
    """B fails always at one prompt in ten and never else, A at a rate of 10%, ten trials each."""
    rng = np.random.default_rng(0)
    false_alarms = 0
    for _ in range(200):
        rates_b = rng.random(prompts) < 0.1
        won = rng.random((prompts, 10)) < 0.1
        found = compare_pairs(
            [[(bool(a), bool(b)) for a in row] for row, b in zip(won, rates_b, strict=True)]
        )
        false_alarms += found.p_value <= 0.05
    assert false_alarms / 200 <= most


@given(st.floats(0, 30), st.integers(1, 60))
def test_the_tails_of_student_are_those_of_scipy(t, degrees):
    assert student_tails(t, degrees) == pytest.approx(
        2 * stats.t.sf(t, degrees), rel=0.02, abs=1e-4
    )
