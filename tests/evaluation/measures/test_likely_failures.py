"""The most likely failures first."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.fluency import fluency
from astra_rl.evaluation.measures.likely_failures import most_likely_failures
from astra_rl.evaluation.records.turn import LogProb


def failures(attempt, turn):
    return [
        attempt(turn(score=0.9, logprob=-10.0, tokens=2), opening="short and odd"),
        attempt(turn(score=0.8, logprob=-12.0, tokens=12), opening="long and plain"),
        attempt(turn(score=0.1, logprob=-1.0), opening="no failure"),
        attempt(turn(score=0.9), opening="not measured"),
    ]


def test_they_are_ranked_by_the_probability_of_the_words_or_per_token(attempt, turn):
    attempts = failures(attempt, turn)
    total = most_likely_failures(attempts)
    assert [each.attempt.opening.prompt for each in total.failures] == [
        "short and odd",
        "long and plain",
    ]
    assert (total.ranked, total.unmeasured) == (2, 1)
    each = most_likely_failures(attempts, by="per_token")
    assert [failure.per_token for failure in each.failures] == [-1.0, -5.0]
    assert each.failures[0].severity == 0.8


@given(st.lists(st.floats(-50, -0.1), max_size=30), st.integers(1, 8))
def test_the_most_likely_ones_are_those_of_a_plain_sort(values, most):
    from tests.evaluation.conftest import _attempt, _turn

    attempts = [
        _attempt(_turn(score=0.9, logprob=value), opening=str(index))
        for index, value in enumerate(values)
    ]
    ranking = most_likely_failures(attempts, most=most)
    assert [each.logprob for each in ranking.failures] == sorted(values, reverse=True)[:most]
    assert ranking.ranked == len(values)


@pytest.mark.parametrize("options", [{"by": "token"}, {"most": 0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        most_likely_failures([], **options)


def test_fluency_is_nats_per_token_of_every_attack(attempt, turn):
    values = [-2.0, -4.0, -6.0]
    attempts = [
        attempt(
            turn(logprobs={"target": LogProb(total=value, tokens=2)}, attack=str(value)), turn()
        )
        for value in values
    ]
    found = fluency(attempts, under="target")
    assert (found.mean, found.median) == (2.0, 2.0)
    assert found.low == pytest.approx(1.2)
    assert found.high == pytest.approx(2.8)
    assert (found.attacks, found.missing) == (3, 3)
    assert math.isnan(fluency([], under="target").mean)
