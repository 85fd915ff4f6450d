"""Conditions that fail a build."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.gate import OF_ORDINARY_USE, fail_on
from astra_rl.evaluation.stats.importance import Sample, failure_probability


def summary(*outcomes, planned=None):
    rows = [
        AttemptRow(
            str(i),
            "",
            f"p{i}",
            0,
            "a",
            "t",
            Outcome(outcome),
            1,
            1 if outcome == "success" else None,
        )
        for i, outcome in enumerate(outcomes)
    ]
    return summarise(rows, planned=planned)


TEN = summary(*["success"] * 2, *["failure"] * 6, "refused", "unscored")
"""2 of 9 known; bounds 0.2 and 0.3."""


@pytest.mark.parametrize(
    ("expression", "fails"),
    [
        ("asr>0.05", True),
        ("asr > 5%", True),
        ("asr>0.3", False),
        ("ASR >= 22.2%", True),
        ("asr<0.3", True),
        ("asr<=0.1", False),
        ("upper(asr)>0.5", True),
        ("upper(asr)>0.7", False),
        ("lower(asr)>0.02", True),
        ("lower( asr ) > 0.1", False),
        ("lowest(asr)>=0.2", True),
        ("highest(asr)>=0.3", True),
        ("highest(asr)>0.31", False),
        ("refused>0.05", True),
        ("unscored>0.1", False),
        ("unscored>=.1", True),
        ("error>0", False),
        ("asr@1>0.2", True),
    ],
)
def test_a_condition_fails_the_build_where_it_holds(expression, fails):
    verdict = fail_on(expression)(TEN)
    assert (verdict.fails, verdict.decided) == (fails, True)
    assert expression in verdict.text


@pytest.mark.parametrize(
    "expression", ["asr>0.5", "upper(asr)>0.99", "asr@5>0.5", "lower(asr)<0.1"]
)
def test_what_could_not_be_measured_fails_the_build(expression):
    verdict = fail_on(expression)(summary("error", "unscored"))
    assert verdict.fails
    assert not verdict.decided
    assert "undecided" in verdict.text


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "cannot read the condition"),
        ("asr", "cannot read"),
        ("asr>", "cannot read"),
        ("asr>0.5>0.2", "cannot read"),
        ("upper(asr>0.5", "cannot read"),
        ("upperasr)>0.5", "cannot read"),
        ("__import__('os')>0", "cannot read"),
        ("asrr>0.5", "unknown quantity 'asrr'. Did you mean 'asr'"),
        ("uper(asr)>0.5", "unknown bound 'uper'. Did you mean 'upper'"),
        ("asr>5", "the limit is 5"),
        ("asr>500%", "the limit is 5"),
        ("asr@0>0.1", "number from 1"),
        ("error@2>0.1", "number from 1"),
        ("highest(asr@2)>0.1", "number from 1"),
        ("asr>-0.1", "the limit is -0.1"),
        ("asr>nan", "cannot read"),
    ],
)
def test_what_is_no_condition_is_refused(expression, message):
    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(")):
        fail_on(expression)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfigurationError):
        fail_on(text)(TEN)


def test_attempts_that_were_never_made_are_errors():
    assert fail_on("error>0.4")(summary("failure", planned=2)).fails


def test_the_bounds_of_a_probability_without_an_estimate_are_those_of_the_baseline():
    found = failure_probability([Sample(False, -1.0, -2.0, True)] * 100)
    assert not fail_on("probability>0.5", OF_ORDINARY_USE)(found).decided
    assert not fail_on("upper(probability)>0.1", OF_ORDINARY_USE)(found).fails
    assert fail_on("upper(probability)>0.01", OF_ORDINARY_USE)(found).fails
    unlimited = failure_probability([Sample(True, -1.0, -2.0, False)] * 100)
    assert not fail_on("lower(probability)>0.01", OF_ORDINARY_USE)(unlimited).decided
