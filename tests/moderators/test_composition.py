import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.moderator import Score, reason_of
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.moderators import (
    FunctionModerator,
    InverseModerator,
    MajorityModerator,
    MaxModerator,
    MeanModerator,
    MinModerator,
    ThresholdModerator,
    WeightedModerator,
)
from astra_rl.testing import ScriptedModerator, check_moderator

NAN = math.nan


def fixed(score):
    return FunctionModerator(lambda texts: [score] * len(texts))


def combined(kind, scores, *arguments):
    return kind([fixed(score) for score in scores], *arguments).moderate(["text"])[0]


@pytest.mark.parametrize(
    ("kind", "scores", "arguments", "expected"),
    [
        (MeanModerator, [0.2, 0.4], (), 0.3),
        (MaxModerator, [0.2, 0.4], (), 0.4),
        (MinModerator, [0.2, 0.4], (), 0.2),
        (WeightedModerator, [0.0, 1.0], ([3, 1],), 0.25),
        (WeightedModerator, [0.4, 1.0], ([1, 0],), 0.4),
        (MajorityModerator, [0.5, 0.9, 0.1], (), 1.0),
        (MajorityModerator, [0.5, 0.4, 0.1], (), 0.0),
        (MajorityModerator, [0.9, 0.1], (), 0.0),  # half is no majority
        (MajorityModerator, [0.7, 0.7, 0.9], (0.8,), 0.0),
        (ThresholdModerator, [0.5], (), 1.0),
        (ThresholdModerator, [0.49], (), 0.0),
        (InverseModerator, [0.25], (), 0.75),
    ],
)
def test_scores_that_are_all_there_are_combined(kind, scores, arguments, expected):
    assert combined(kind, scores, *arguments) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "scores", "arguments", "expected"),
    [
        (MaxModerator, [1.0, NAN], (), 1.0),  # nothing is higher
        (MinModerator, [NAN, 0.0], (), 0.0),  # nothing is lower
        (MajorityModerator, [0.9, NAN, 0.9], (), 1.0),  # two of three are a majority
        (MajorityModerator, [0.1, NAN, 0.1], (), 0.0),  # one of three never is
        (MajorityModerator, [0.9, NAN, 0.1, 0.1], (), 0.0),  # two of four are none
        (WeightedModerator, [0.4, NAN], ([1, 0],), 0.4),  # nobody listens to it
    ],
)
def test_a_missing_score_that_could_change_nothing_does_no_harm(kind, scores, arguments, expected):
    assert combined(kind, scores, *arguments) == expected


@pytest.mark.parametrize(
    ("kind", "scores", "arguments"),
    [
        (MeanModerator, [1.0, NAN], ()),
        (MaxModerator, [0.99, NAN], ()),
        (MinModerator, [0.01, NAN], ()),
        (MajorityModerator, [0.9, NAN, 0.1], ()),
        (WeightedModerator, [1.0, NAN], ([99, 1],)),
        (ThresholdModerator, [NAN], ()),
        (InverseModerator, [NAN], ()),
        (MaxModerator, [NAN, NAN], ()),
    ],
)
def test_a_missing_score_that_could_decide_makes_the_outcome_missing(kind, scores, arguments):
    assert math.isnan(combined(kind, scores, *arguments))


SCORES = st.one_of(st.floats(0, 1), st.just(NAN))


@given(st.lists(SCORES, min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 3))
def test_a_known_outcome_stays_whatever_the_missing_scores_would_have_been(scores, guess, which):
    kind = (MeanModerator, MaxModerator, MinModerator, MajorityModerator)[which]
    known = combined(kind, scores)
    filled = combined(kind, [guess if math.isnan(score) else score for score in scores])
    assert math.isnan(known) or known == pytest.approx(filled)


def test_the_reason_names_the_moderator_and_its_reason():
    mean = MeanModerator([fixed(0.5), fixed(Score.missing("timed out"))])
    assert reason_of(mean.moderate(["x"])[0]) == "FunctionModerator: timed out"


def test_each_moderator_is_asked_once_about_all_texts():
    first, second = ScriptedModerator({"a": 1.0}), ScriptedModerator({"b": 1.0})
    assert MaxModerator([first, second]).moderate(["a", "b", "c"]) == [1.0, 1.0, 0.0]
    assert first.calls == second.calls == [["a", "b", "c"]]


def test_compositions_nest_and_are_moderators():
    nested = InverseModerator([MeanModerator([fixed(0.2), ThresholdModerator([fixed(0.9)])])])
    check_moderator(nested)
    assert nested.moderate(["x"]) == [pytest.approx(0.4)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanModerator([]), "at least one"),
        (lambda: WeightedModerator([fixed(0)], [1, 2]), "2 weights for 1"),
        (lambda: WeightedModerator([fixed(0)], [0]), "not all zero"),
        (lambda: WeightedModerator([fixed(0)], [-1]), "finite, not negative"),
        (lambda: WeightedModerator([fixed(0)], [math.inf]), "finite, not negative"),
        (lambda: ThresholdModerator([fixed(0), fixed(0)]), "transforms one moderator"),
        (lambda: InverseModerator([fixed(0), fixed(0)]), "transforms one moderator"),
        (lambda: ThresholdModerator([fixed(0)], 0), "in .0, 1."),
        (lambda: MajorityModerator([fixed(0)], 1.1), "in .0, 1."),
    ],
)
def test_what_cannot_be_combined_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_moderator_that_returns_too_few_scores_is_named():
    class Forgetful(ScriptedModerator):
        def moderate(self, x):
            return []

    with pytest.raises(ContractError, match="Forgetful returned 0 values for 1"):
        MaxModerator([Forgetful({})]).moderate(["x"])
