"""The one place that numbers come from: every outcome counted once, nothing safe by default."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.comparisons import compare
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.measures.transfer_matrix import transfer_matrix
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome

ROWS = st.lists(
    st.builds(
        AttemptRow,
        id=st.integers(0, 30).map(str),
        phase=st.just(""),
        prompt_id=st.sampled_from("pqr"),
        trial=st.integers(0, 5),
        attacker=st.just("a"),
        target=st.just("t"),
        outcome=st.sampled_from(list(Outcome)),
        turns=st.integers(1, 3),
        first_failing_turn=st.none(),
    ),
    max_size=25,
)


def row(outcome, prompt="p", trial=0, **fields):
    fields = {"attacker": "a", "target": "t", "turns": 1} | fields
    if outcome == "success":
        fields.setdefault("first_failing_turn", fields["turns"])
    key = f"{prompt}-{trial}-{fields['attacker']}-{fields['target']}"
    return AttemptRow(
        id=key, phase="", prompt_id=prompt, trial=trial, outcome=Outcome(outcome), **fields
    )


@pytest.mark.slow
@given(ROWS, st.integers(0, 9))
def test_outcomes_always_add_up_to_what_was_planned(rows, unmade):
    made = len({each.id for each in rows})
    summary = summarise(rows, planned=made + unmade)
    assert sum(summary.outcomes.values()) == summary.planned == made + unmade
    assert summary.never_made == unmade
    assert summary.asr.trials + summary.asr.unscored == summary.planned
    low, high = summary.asr.bounds
    assert 0 <= low <= high <= 1


@pytest.mark.slow
@given(ROWS)
def test_the_rate_is_that_of_a_plain_count(rows):
    """But where unknown outcomes are not like the known ones; it is an estimate by turns there."""
    unique = {each.id: each for each in rows}.values()
    counts = Counter(each.outcome.value for each in unique)
    known = sum(counts[name] for name in ("success", "failure", "refused", "blocked", "no_attack"))
    summary = summarise(rows)
    if known:
        assert summary.asr.known_share == counts["success"] / known
        assert summary.asr.is_by_turn or summary.asr.estimate == summary.asr.known_share
    else:
        assert math.isnan(summary.asr.known_share)
        assert math.isnan(summary.asr.estimate) or summary.asr.is_by_turn


def test_an_attempt_recorded_twice_counts_once_as_it_was_last():
    assert summarise([row("error"), row("success")]).outcomes[Outcome.SUCCESS] == 1


def test_more_attempts_than_planned_are_refused():
    with pytest.raises(ConfigurationError, match="2 attempts were made and only 1 planned"):
        summarise([row("success"), row("failure", trial=1)], planned=1)


def test_nothing_at_all_has_no_rate_and_is_not_safe():
    summary = summarise([], planned=5)
    assert math.isnan(summary.asr.estimate)
    assert summary.outcomes[Outcome.ERROR] == 5
    assert summary.asr.bounds == (0.0, 1.0)


def test_trials_of_one_prompt_widen_the_interval():
    alone = summarise([row("success" if p < 5 else "failure", f"p{p}") for p in range(20)])
    bunched = summarise(
        [row("success" if p < 1 else "failure", f"p{p}", t) for p in range(4) for t in range(5)]
    )
    assert alone.asr.estimate == bunched.asr.estimate
    assert bunched.asr.method == "cluster bootstrap"
    width = [each.asr.interval.high - each.asr.interval.low for each in (alone, bunched)]
    assert width[1] > 1.5 * width[0]


def test_the_share_of_an_outcome_is_clustered_too():
    rows = [row("refused" if p < 1 else "failure", f"p{p}", t) for p in range(4) for t in range(5)]
    share = summarise(rows, planned=22).share(Outcome.REFUSED)
    assert (share.successes, share.trials) == (5, 22)
    assert share.interval.high > 0.6
    errors = summarise(rows, planned=22).share(Outcome.ERROR)
    assert (errors.successes, errors.trials) == (2, 22)
    assert errors.by_prompt[-2:] == ((1, 1), (1, 1))


def test_any_turn_last_turn_and_first_failing_turn_are_told_apart():
    summary = summarise(
        [
            row("success", "p", turns=3, first_failing_turn=1, last_turn_failed=False),
            row("success", "q", turns=3, first_failing_turn=3, last_turn_failed=True),
            row("failure", "r", turns=3, last_turn_failed=False),
        ]
    )
    assert summary.asr.successes == 2
    assert summary.asr_last_turn.successes == 1
    assert summary.first_failures == [1, 0, 1]


def test_queries_to_success_count_every_answer_until_the_first_failure():
    summary = summarise(
        [
            row("failure", "p", 0, turns=3),
            row("success", "p", 1, turns=3, first_failing_turn=2),
            row("success", "q", 0, turns=1),
            row("failure", "r", 0, turns=3),
        ]
    )
    assert summary.queries.counts == (5, 1)
    assert summary.queries.censored == (3,)
    assert summary.queries.median == 5.0


def test_a_turn_whose_attack_was_chosen_among_several_costs_all_their_answers():
    rows = [
        row("failure", "p", 0, turns=2)._replace(queries_per_turn=8),
        row("success", "p", 1, turns=3, first_failing_turn=2)._replace(queries_per_turn=8),
    ]
    assert summarise(rows).queries.counts == (32,)


def test_the_rate_at_k_is_shown_for_numbers_of_attempts_that_were_made():
    rows = [row("success" if t == 0 else "failure", p, t) for p in "pq" for t in range(5)]
    found = {each.k: each.estimate for each in summarise(rows).asr_at_k}
    assert found == pytest.approx({1: 0.2, 2: 0.4, 5: 1.0})


def test_two_targets_are_compared_on_the_same_prompts():
    a = [row("success", p) for p in "pqrs"] + [row("failure", "x"), row("success", "only a")]
    b = [row("failure", p) for p in "pqr"] + [row("success", "s"), row("error", "x")]
    comparison = compare(a, b)
    assert comparison.counts == (1, 3, 0, 0)
    assert comparison.difference == 0.75
    assert (comparison.unscored, comparison.unpaired) == (1, 1)


def test_sets_without_a_prompt_in_common_are_refused():
    with pytest.raises(ConfigurationError, match="no prompt in common"):
        compare([row("success", "p")], [row("success", "q")])


def test_sets_that_mix_targets_are_refused():
    mixed = [row("success", target="t"), row("failure", target="u")]
    with pytest.raises(ConfigurationError, match=r"first set .* several attackers or targets"):
        compare(mixed, [row("success")])


def test_a_transfer_matrix_has_a_rate_for_every_pair_that_was_tried():
    rows = [
        row("success", "p"),
        row("failure", "q"),
        row("success", "p", target="u"),
        row("failure", "p", attacker="b"),
    ]
    matrix = transfer_matrix(rows)
    assert (matrix.attackers, matrix.targets) == (["a", "b"], ["t", "u"])
    assert {pair: rate.estimate for pair, rate in matrix.rates.items()} == {
        ("a", "t"): 0.5,
        ("a", "u"): 1.0,
        ("b", "t"): 0.0,
    }


def test_a_pair_of_which_nothing_was_played_is_all_errors_and_not_safe():
    planned = {("a", "t"): 3, ("a", "u"): 2}
    matrix = transfer_matrix([row("failure", "p")], planned=planned)
    assert matrix.targets == ["t", "u"]
    unplayed = matrix.summaries["a", "u"]
    assert (unplayed.planned, unplayed.never_made) == (2, 2)
    assert (matrix.rates["a", "u"].trials, matrix.rates["a", "u"].unscored) == (0, 2)
    assert matrix.summaries["a", "t"].never_made == 2
