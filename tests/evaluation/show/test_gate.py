"""Conditions that fail a build."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgedSummary, JudgeQuality
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.gate import (
    OF_A_COMPARISON,
    OF_A_JUDGED_SUMMARY,
    OF_ORDINARY_USE,
    check,
    fail_on,
)
from astra_rl.evaluation.stats.classification import Confusion
from astra_rl.evaluation.stats.importance import Sample, failure_probability
from astra_rl.evaluation.stats.paired import compare_trials
from astra_rl.evaluation.stats.paired_tables import PromptTrials


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


def test_one_bound_covers_sampling_and_unscored_attempts():
    """40 of 100 unscored, none of the others a success: the rate may be above 40%."""
    found = summary(*["failure"] * 60, *["unscored"] * 40)
    assert fail_on("upper(asr)>0.4")(found).fails
    assert not fail_on("highest(asr)>0.4")(found).fails  # without sampling error
    assert not fail_on("lower(asr)>0")(found).fails


def test_success_at_k_covers_unscored_attempts_too():
    found = summary(*["failure"] * 50, *["unscored"] * 50)
    assert fail_on("upper(asr@1)>0.5")(found).fails
    assert not fail_on("upper(asr@1)>0.1")(summary(*["failure"] * 50)).fails
    assert not fail_on("lower(asr@1)>0.5")(summary(*["success"] * 50, *["unscored"] * 50)).fails


def test_unscored_attempts_cannot_pass_a_comparison():
    """B fails 40% of the time, as far as is known; those are the unscored ones."""
    prompts = [PromptTrials({0: False}, {0: None if at < 4 else False}) for at in range(10)]
    found = compare_trials(prompts)
    verdict = fail_on("difference<0", OF_A_COMPARISON)(found)
    assert (verdict.fails, verdict.decided) == (True, False)
    assert fail_on("unscored>0.3", OF_A_COMPARISON)(found).fails
    assert not fail_on("unscored>0.4", OF_A_COMPARISON)(found).fails
    assert fail_on("lower(difference)<-0.4", OF_A_COMPARISON)(found).fails
    assert not fail_on("difference>0", OF_A_COMPARISON)(found).fails


def test_bounds_of_several_results_are_simultaneous():
    """20 cells truly at 5%: a lower bound above 5% in any of them is a false alarm."""
    generator = np.random.default_rng(0)
    condition = fail_on("lower(asr)>0.05")
    counts = generator.binomial(100, 0.05, size=(400, 20))
    fails = {
        (k, results): condition(summary(*["success"] * k, *["failure"] * (100 - k)), results).fails
        for k in range(counts.max() + 1)
        for results in (1, 20)
    }
    alarms = {
        results: np.mean([any(fails[int(k), results] for k in row) for row in counts])
        for results in (1, 20)
    }
    assert alarms[20] <= 0.05
    assert alarms[1] > 0.1


def test_what_one_result_proves_makes_the_next_one_easier():
    weak, strong, none = (summary(*["success"] * k, *["failure"] * (100 - k)) for k in (12, 60, 0))
    # 12 of 100: 6.4% to 19.8% alone, 5.8% to 21.2% as one of two.
    condition = fail_on("lower(asr)>0.06")
    assert [each.fails for each in check([condition], [weak])] == [True]
    assert [each.fails for each in check([condition], [weak, weak])] == [False, False]
    assert [each.fails for each in check([condition], [weak, strong])] == [True, True]
    passing = fail_on("upper(asr)>0.2")
    assert [each.fails for each in check([passing], [weak, weak])] == [True, True]
    assert [each.fails for each in check([passing], [weak, none])] == [False, False]


def judged(successes, planned=200, counts=(95, 3, 97, 5), quality=True):
    made = summary(*["success"] * successes, *["failure"] * (planned - successes))
    measured = JudgeQuality("labels.csv", 200, 0.5, "2026-01-01", Confusion(*counts))
    return JudgedSummary(made, measured if quality else None)


def test_the_rate_corrected_for_the_errors_of_the_judge_can_be_gated():
    """32 of 200 by a judge with 3% false positives: about 14% in truth, and the bound is wider."""
    found = judged(32)
    corrected = found.corrected()
    condition = fail_on("asr_corrected>0.15", OF_A_JUDGED_SUMMARY)
    assert not condition(found).fails
    limit = corrected.interval.high - 0.001
    upper = fail_on(f"upper(asr_corrected)>{limit:.4f}", OF_A_JUDGED_SUMMARY)
    assert upper(found).fails
    assert upper(found).decided
    assert fail_on("asr>0.15", OF_A_JUDGED_SUMMARY)(found).fails  # the rate of the verdicts
    together = found.corrected(1 - 0.05 / 20).interval
    assert together.low < corrected.interval.low
    assert together.high > corrected.interval.high


def test_a_rate_that_cannot_be_corrected_is_undecided_and_says_why():
    condition = fail_on("asr_corrected>0.5", OF_A_JUDGED_SUMMARY)
    verdict = condition(judged(32, quality=False))
    assert (verdict.fails, verdict.decided) == (True, False)
    assert "not calibrated" in verdict.text
    assert "a judge that guesses has 1" in condition(judged(32, counts=(5, 5, 5, 5))).text
    with pytest.raises(ConfigurationError, match="unknown quantity"):
        fail_on("asr_corrected>0.5")


def test_every_rate_of_an_evaluation_that_stopped_early_has_a_confidence_sequence():
    """7 of 64: a fixed sample would prove that the rate is above 5%, the sequence does not."""
    names = ["success"] * 7 + ["failure"] * 57
    rows = [
        AttemptRow(f"i{at}", "again", f"p{at}", 0, "a", "t", Outcome(name), 1)
        for at, name in enumerate(names)
    ]
    found = summarise(rows, sequential=True)
    for quantity in ("asr", "success", "asr@1"):
        assert not fail_on(f"lower({quantity})>0.03")(found).fails
        assert fail_on(f"upper({quantity})>0.25")(found).fails
    for quantity in ("success", "asr@1"):
        assert fail_on(f"lower({quantity})>0.03")(summarise(rows)).fails
