"""Rates by threshold: what a judgement at that threshold would have found."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.show.report.making import attempt, turn

from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.measures.thresholds import THRESHOLDS, ScoreTable, rates_by_threshold
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome, decide_outcome
from astra_rl.evaluation.records.turn import JudgeScore

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


@pytest.mark.slow
@given(CONVERSATIONS, st.sampled_from(THRESHOLDS))
def test_the_rate_is_that_of_the_same_attempts_judged_at_this_threshold(conversations, threshold):
    """But an estimate by turns is not known at other thresholds than the recorded one."""
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
    shown, whole = found.rate.as_dict(), expected.as_dict()
    if expected.is_by_turn:
        del whole["estimate"]
        assert math.isnan(shown.pop("estimate"))
    assert shown == whole or math.isnan(expected.estimate)
    assert (found.rate.trials, found.rate.unscored) == (expected.trials, expected.unscored)


JUDGES = st.sampled_from(["a", "b", "c"])


TURNS = st.lists(st.dictionaries(JUDGES, SCORES), max_size=2)


@settings(max_examples=30)
@given(st.lists(st.tuples(TURNS, st.booleans(), st.booleans()), max_size=4))
def test_judges_that_appear_late_are_counted_from_the_first_attempt_on(conversations):
    """Attempts before them have no score of theirs; some are known without one."""
    attempts = [
        attempt(
            *(
                turn("a", "b", None).model_copy(
                    update={
                        "scores": {name: JudgeScore(value=each) for name, each in scores.items()},
                        "finish_reason": "content_filter" if blocked else None,
                    }
                )
                for scores in turns
            ),
            opening=f"opening {trial % 3}", trial=trial, error="it failed" if failed else "",
        )
        for trial, (turns, blocked, failed) in enumerate(conversations)
    ]  # fmt: skip
    table = ScoreTable(["a"], most=3)
    for each in attempts:
        table.add(each)
    for judge in ("a", "b", "c", "nobody"):
        alone = [at.rate for at in rates_by_threshold(attempts, judge, (0.2, 0.5))]
        assert [at.rate for at in table.rates(judge, (0.2, 0.5))] == alone
        for rate, threshold in zip(alone, (0.2, 0.5), strict=True):
            outcomes = [
                decide_outcome(each.turns, judge, threshold, error=each.error) for each in attempts
            ]
            assert rate.successes == outcomes.count(Outcome.SUCCESS)
            assert rate.trials == sum(each in KNOWN_OUTCOMES for each in outcomes)


def test_judges_beyond_the_limit_are_left_out():
    table = ScoreTable(["a"], most=2)
    scores = {name: JudgeScore(value=0.9) for name in ("b", "c")}
    table.add(attempt(turn("x", "y", 0.1).model_copy(update={"scores": scores})))
    assert table.judges == ("a", "b")


@given(CONVERSATIONS)
def test_a_higher_threshold_never_finds_more_failures(conversations):
    rates = [at.rate for at in rates_by_threshold(made(conversations), "judge")]
    assert all(a.successes >= b.successes for a, b in pairwise(rates))
    assert {rate.trials + rate.unscored for rate in rates} == {len(conversations)}


def test_a_judge_that_scored_nothing_leaves_everything_unscored():
    (found,) = rates_by_threshold([attempt(turn("a", "b", 0.9))], "nobody", [0.5])
    assert (found.rate.trials, found.rate.unscored) == (0, 1)
