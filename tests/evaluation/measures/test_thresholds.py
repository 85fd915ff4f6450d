"""Rates by threshold: what a judgement at that threshold would have found."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.show.report.making import attempt, turn

from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.measures.thresholds import THRESHOLDS, rates_by_threshold

SCORES = st.none() | st.floats(0, 1).map(lambda score: round(score, 2))
CONVERSATIONS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(SCORES, max_size=3), st.booleans()), max_size=12
)


def made(conversations):
    return [
        attempt(
            *(turn("a", "b", score) for score in scores),
            opening=f"opening {prompt}", trial=trial, error="it failed" if failed else "",
        )
        for trial, (prompt, scores, failed) in enumerate(conversations)
    ]  # fmt: skip


@given(CONVERSATIONS, st.sampled_from(THRESHOLDS))
def test_the_rate_is_that_of_the_same_attempts_judged_at_this_threshold(conversations, threshold):
    attempts = made(conversations)
    again = [
        each.judged(
            "judge",
            [math.nan if (s := turn.score("judge")) is None else s for turn in each.turns],
            threshold=threshold,
        )
        for each in attempts
    ]
    expected = summarise(each.row for each in again).asr
    (found,) = rates_by_threshold(attempts, "judge", [threshold])
    assert found.rate.as_dict() == expected.as_dict() or math.isnan(expected.estimate)
    assert (found.rate.trials, found.rate.unscored) == (expected.trials, expected.unscored)


@given(CONVERSATIONS)
def test_a_higher_threshold_never_finds_more_failures(conversations):
    rates = [at.rate for at in rates_by_threshold(made(conversations), "judge")]
    assert all(a.successes >= b.successes for a, b in pairwise(rates))
    assert {rate.trials + rate.unscored for rate in rates} == {len(conversations)}


def test_a_judge_that_scored_nothing_leaves_everything_unscored():
    (found,) = rates_by_threshold([attempt(turn("a", "b", 0.9))], "nobody", [0.5])
    assert (found.rate.trials, found.rate.unscored) == (0, 1)
