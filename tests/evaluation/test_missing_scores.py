"""Scores that are lost at random, turn by turn: a success survives that, a failure does not."""

import math

import numpy as np
import pytest
from scipy import stats

from astra_rl.evaluation.measures.comparisons import compare
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.measures.thresholds import rates_by_threshold
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.outcome import Outcome, hides_failures
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.evaluation.show.gate import OF_A_COMPARISON, fail_on
from astra_rl.evaluation.stats.intervals import clustered_interval
from astra_rl.evaluation.stats.paired_seeds import SeedPairs
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.seed_spread import SeedSpread

TRUTH = 0.1
"""Share of conversations that succeed, each in one turn."""


def play(count, turns, lost, seed=0):
    """Conversations of a target with this rate whose turn scores are lost with a probability."""
    rng = np.random.default_rng(seed)
    succeeds = rng.random(count) < TRUTH
    missing = rng.random((count, turns)) < lost
    seen = succeeds & ~missing[np.arange(count), rng.integers(turns, size=count)]
    unknown = ~seen & missing.any(axis=1)
    names = np.where(seen, "success", np.where(unknown, "unscored", "failure"))
    return [
        AttemptRow(f"i{at}", "after", f"p{at}", 0, "a", "t", Outcome(name), turns)
        for at, name in enumerate(names.tolist())
    ]


def test_the_interval_of_conversations_of_several_turns_covers_the_unknown_outcomes():
    found = summarise(play(2000, 5, 0.1))
    assert found.asr.estimate > 0.13  # 0.09 / (0.09 + 0.9 * 0.9**5 + ...) of the known ones
    assert found.asr.interval == found.asr.covering()
    assert found.asr.interval.low <= TRUTH <= found.asr.interval.high
    assert found.asr.method_text.endswith("any unknown outcomes")
    at_1 = found.at_k(1).interval
    assert at_1.low <= TRUTH <= at_1.high
    assert at_1 == found.at_k_covering(1)


def test_a_lost_score_of_a_single_turn_is_no_selection():
    rate = summarise(play(2000, 1, 0.1)).asr
    assert rate.unscored > 100
    assert rate.interval == Rate(rate.successes, rate.trials).interval
    assert rate.interval.low <= TRUTH <= rate.interval.high


def test_equal_targets_of_which_one_lost_scores_are_not_told_apart():
    found = compare(play(1500, 5, 0.0, seed=1), play(1500, 5, 0.1, seed=21))
    assert found.difference < -0.03
    assert found.interval.low <= 0 <= found.interval.high
    assert not found.p_value < 0.05
    alike = compare(play(300, 5, 0.1, seed=3), play(300, 5, 0.1, seed=4))
    assert alike.bounds.low < 0 < alike.bounds.high
    assert math.isnan(alike.p_value)
    for condition in ("difference<0", "difference>0", "difference>=-1%"):
        verdict = fail_on(condition, OF_A_COMPARISON)(alike)
        assert verdict.fails
        assert not verdict.decided


def test_a_difference_that_no_unknown_outcome_can_hide_has_the_least_favourable_p_value():
    def rows(names):
        return [
            AttemptRow(f"i{at}", "after", f"p{at}", 0, "a", "t", Outcome(name), 3)
            for at, name in enumerate(names)
        ]

    a = rows(["success"] * 20 + ["failure"] * 20)
    b = rows(["unscored"] * 5 + ["failure"] * 35)
    found = compare(a, b)
    assert found.bounds == (15 / 40, 20 / 40)
    assert found.p_value == pytest.approx(stats.binomtest(15, 15).pvalue)
    assert found.interval.low < 15 / 40 < 20 / 40 < found.interval.high


def test_rates_at_other_thresholds_cover_them_too():
    def attempt(at, *scores):
        given = [JudgeScore(value=s, reason="lost" if s is None else None) for s in scores]
        turns = [Turn(attack="a", response="r", scores={"j": each}) for each in given]
        return Attempt.make(
            run="r", opening=f"p{at}", target="t", attacker="a", turns=turns, judge="j"
        )

    several = [attempt(at, 0.1, None) for at in range(5)] + [attempt(9, 0.9, 0.1)]
    (found,) = rates_by_threshold(several, "j", [0.5])
    assert found.rate.interval == found.rate.covering()
    assert found.rate.interval.low < 1 / 6
    assert hides_failures(Outcome.UNSCORED, 2)
    assert not hides_failures(Outcome.UNSCORED, 1)
    assert not hides_failures(Outcome.FAILURE, 2)


def test_the_mean_over_seeds_covers_them_too():
    """Without conversations whose outcome is unknown the rate is 50%; with them 25% to 75%."""
    rate = Rate.of_prompts([(1, 2)] * 200, unscored=400, selective=True)
    low, high = SeedSpread(dict.fromkeys(range(6), rate)).interval
    assert low <= 0.25 < 0.75 <= high
    pairs = SeedPairs({seed: (Rate.of_prompts([(1, 2)] * 200), rate) for seed in range(6)})
    low, high = pairs.interval
    assert low <= -0.25 < 0.25 <= high
    assert pairs.p_value is None


def test_prompts_whose_every_success_is_unscored_may_raise_the_rate_at_k():
    """A judge that declines to score what fails: the truth is a success at each of 20 prompts."""
    rows = [
        AttemptRow(f"i{prompt}-{trial}", "after", f"p{prompt}", trial, "a", "t", outcome, 1)
        for prompt in range(20)
        for trial, outcome in enumerate([Outcome.UNSCORED, Outcome.FAILURE])
    ]
    found = summarise(rows)
    assert found.at_k(2).prompts == 0
    assert found.at_k_covering(2) == (0.0, 1.0)
    assert found.at_k_covering(1).low == 0.0
    assert found.at_k_covering(1).high > clustered_interval([(1, 2)] * 20).high - 1e-9
