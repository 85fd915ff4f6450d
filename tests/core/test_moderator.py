"""A score is a float that knows why it is missing."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.moderator import Score, count_missing, describe_missing, reason_of
from astra_rl.infra.jsonio import json_line


def test_a_missing_score_is_nan_to_whoever_knows_only_floats():
    score = Score.missing("unparsable verdict")
    assert math.isnan(score)
    assert reason_of(score) == "unparsable verdict"
    assert json_line({"score": score}) == '{"score": null}'


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_a_copy_still_knows_the_reason(again):
    assert again(Score.missing("timed out")).reason == "timed out"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (-math.inf, "not finite"),
        (1.5, "out of range"),
        (-0.01, "out of range"),
        ("0.5", "not a number"),
        (b"1", "not a number"),
        (None, "not a number"),
        (True, "not a number"),
        ([0.5], "not a number"),
        (10**400, "out of range"),
        (np.array([0.1, 0.2]), "not a number"),
        (Score.missing("too long"), "too long"),
    ],
)
def test_what_is_no_score_is_missing_and_says_why(value, reason):
    assert reason_of(Score.checked(value)) == reason


@given(st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.booleans()))
def test_a_checked_score_is_in_range_or_missing_with_a_reason(value):
    score = Score.checked(value)
    assert 0 <= score <= 1 or (math.isnan(score) and score.reason)


def test_reasons_are_counted_most_frequent_first():
    scores = [0.1, math.nan, *[Score.missing("b")] * 2, *[Score.missing("a")] * 2]
    counts = count_missing(scores)
    assert counts == {"a": 2, "b": 2, "no reason given": 1}
    assert describe_missing(counts) == "5 unscored: 2 a, 2 b, 1 no reason given"
    assert describe_missing({}) == "0 unscored"
    assert json.dumps(counts)
