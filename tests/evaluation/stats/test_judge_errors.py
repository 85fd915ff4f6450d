import numpy as np
import pytest

from astra_rl.evaluation.judges.quality import JudgeQuality, counts_at
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.stats.classification import Confusion, confusion, decisions
from astra_rl.evaluation.stats.intervals import proportion_interval
from astra_rl.evaluation.stats.judge_errors import (
    Corrected,
    JudgedTurns,
    NotCorrected,
    correct_rate,
)
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.score_curves import roc_curve

NEARLY_SURE = 10**7


def labelled(sensitivity, specificity, positives=NEARLY_SURE, negatives=NEARLY_SURE):
    tp, tn = round(sensitivity * positives), round(specificity * negatives)
    return Confusion(tp, negatives - tn, tn, positives - tp)


def test_with_known_error_rates_it_is_the_formula_of_rogan_and_gladen():
    # 0.3 = 0.25 * 0.9 + 0.75 * 0.1
    found = correct_rate(Rate(300_000, 1_000_000), labelled(0.9, 0.9))
    assert isinstance(found, Corrected)
    assert found.estimate == pytest.approx(0.25, abs=1e-6)
    assert found.false_positives[0] == pytest.approx(0.1)
    assert found.precision[0] == pytest.approx(0.25 * 0.9 / 0.3, abs=1e-5)
    assert found.interval.low < 0.25 < found.interval.high


def test_a_judge_without_errors_changes_nothing():
    rate = Rate(30, 100)
    found = correct_rate(rate, labelled(1, 1))
    assert found.estimate == pytest.approx(0.3)
    assert found.interval == pytest.approx(tuple(rate.interval), abs=1e-3)


def test_a_perfect_target_is_seen_behind_a_judge_with_three_percent_false_positives_in_five_turns():
    # The measured rate of 16% is what the judge alone gives: 1 - 0.97^5 = 14%.
    found = correct_rate(Rate(32, 200), labelled(1, 0.97, 100, 100), JudgedTurns({5: 200}))
    assert found.interval.low == 0
    assert found.false_positives[0] == pytest.approx(1 - 0.97**5)
    assert found.false_positives[1].low < 0.16 < found.false_positives[1].high
    assert found.precision[1].low == 0
    assert "a target that never fails would get 14%" in found.text


def test_errors_that_are_the_same_in_all_turns_are_covered_too():
    # The judge calls all five turns of 3% of the conversations, and the target fails in 10%.
    measured = 0.1 + 0.9 * 0.03
    found = correct_rate(
        Rate(round(measured * 10**6), 10**6), labelled(1, 0.97), JudgedTurns({5: 10**6})
    )
    assert found.estimate < 0.1 <= found.interval.high


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (labelled(0.6, 0.44), "a judge that guesses has 1"),
        (Confusion(0, 1, 5, 0), "no labels of one class"),
        (labelled(1, 0.1), "contradicts the measured error rates"),
    ],
)
def test_no_correction_where_the_labels_cannot_carry_it(counts, reason):
    found = correct_rate(Rate(10, 1000), counts)
    assert isinstance(found, NotCorrected)
    assert reason in found.text


def test_several_turns_can_leave_a_judge_without_information():
    found = correct_rate(Rate(99, 100), labelled(0.9, 0.6), JudgedTurns({9: 100}))
    assert isinstance(found, NotCorrected)
    assert "higher specificity" in found.text


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.6, 0.6), (0.8, 0.97), (1.0, 1.0)])
def test_the_interval_of_the_corrected_rate_covers_the_true_one(rate, sensitivity, specificity):
    rng = np.random.default_rng(0)
    measured = rate * sensitivity + (1 - rate) * (1 - specificity)
    covered = given = 0
    for _ in range(250):
        counts = labelled(
            rng.binomial(50, sensitivity) / 50, rng.binomial(50, specificity) / 50, 50, 50
        )
        found = correct_rate(Rate(int(rng.binomial(200, measured)), 200), counts)
        if isinstance(found, Corrected):
            given += 1
            covered += found.interval.low <= rate <= found.interval.high
    assert given >= 200
    assert covered >= (0.93 - 2 * 0.0135) * given  # two standard errors of 250 repetitions


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.5, 0.52), (0.7, 0.35), (1.0, 0.05)])
def test_a_judge_that_may_only_guess_excludes_no_rate(sensitivity, specificity, turns):
    """Judges that know next to nothing, of which the labels make half seem to know something.

    Of the intervals that were given 15% to 40% missed the truth while they took the estimated
    errors at their word.
    """
    rng = np.random.default_rng(0)
    truth, missed, given = 0.1, 0, 0
    right = 1 - (1 - sensitivity) * specificity ** (turns - 1)
    measured = truth * right + (1 - truth) * (1 - specificity**turns)
    for _ in range(100):
        tp, tn = int(rng.binomial(20, sensitivity)), int(rng.binomial(100, specificity))
        counts = Confusion(tp, 100 - tn, tn, 20 - tp)
        rate = Rate(int(rng.binomial(1000, measured)), 1000)
        found = correct_rate(rate, counts, JudgedTurns({turns: 1000}))
        if isinstance(found, Corrected):
            given += 1
            missed += not found.interval.low <= truth <= found.interval.high
            if found.may_guess:
                assert found.interval == (0, 1)
                assert "label more" in found.text
    assert missed <= (0.07 + 2 * 0.025) * given


def test_trials_of_one_prompt_widen_the_corrected_interval():
    single = correct_rate(Rate(30, 100), labelled(0.9, 0.9))
    clustered = correct_rate(Rate.of_prompts([(10, 10)] * 3 + [(0, 10)] * 7), labelled(0.9, 0.9))
    assert clustered.estimate == pytest.approx(single.estimate)
    assert np.ptp(clustered.interval) > 1.5 * np.ptp(single.interval)


def test_the_error_rates_are_those_at_the_threshold_of_the_rate():
    rng = np.random.default_rng(1)
    scores = np.round(rng.random(200), 2)
    truth = rng.random(200) < scores
    record = {
        "counts": confusion(truth, scores, 0.3)._asdict(),
        "roc": [
            {**point._asdict(), "threshold": None if np.isinf(point.threshold) else point.threshold}
            for point in roc_curve(truth, scores)
        ],
    }
    for threshold in (0.01, 0.3, 0.555, 0.9, 1.0):
        assert counts_at(record, threshold) == confusion(truth, scores, threshold)


def test_the_record_of_a_judges_quality_can_be_read_again():
    quality = JudgeQuality("l.csv", 70, 0.9, "2026-01-01", Confusion(7, 3, 29, 23))
    assert JudgeQuality.from_dict(quality.as_dict()) == quality
    assert JudgeQuality.from_dict(None) is None
    assert quality.text.startswith("sensitivity 0.23 (")
    assert "specificity 0.91 (" in quality.text
    assert quality.text.endswith("at threshold 0.9; 62 labels of l.csv")


@pytest.mark.parametrize("turns", [1, 3])
def test_labels_of_one_prompt_may_err_alike(turns):
    """20 prompts of ten labels with an intraclass correlation of 0.3, per class.

    With labels that count as independent the interval covers the truth in about 80% of the samples.
    """
    rng = np.random.default_rng(0)
    truth = 0.05 if turns == 1 else 0.0
    false, right = 1 - 0.95**turns, 0.9

    def errors(rate):
        return rng.binomial(10, rng.beta(rate * 7 / 3, (1 - rate) * 7 / 3, size=20))

    inside, repetitions = 0, 60
    for _ in range(repetitions):
        by_group = [
            *(Confusion(10 - int(each), 0, 0, int(each)) for each in errors(0.1)),
            *(Confusion(0, int(each), 10 - int(each), 0) for each in errors(0.05)),
        ]
        counts = Confusion(*map(sum, zip(*by_group, strict=True)))
        rate = Rate(int(rng.binomial(400, truth * right + (1 - truth) * false)), 400)
        found = correct_rate(rate, counts, JudgedTurns({turns: 400}), by_group=by_group)
        inside += found.interval.low <= truth <= found.interval.high
    assert inside >= (0.93 - 2 * 0.033) * repetitions  # two standard errors


def test_the_numbers_of_a_judge_that_erred_on_few_prompts_are_wide():
    """Of 40 positive labels the ten of one prompt were missed: four prompts, not 40 labels."""
    by_group = (Confusion(0, 0, 5, 10), *[Confusion(10, 0, 5, 0)] * 3)
    counts = Confusion(30, 0, 20, 10)
    alone, grouped = decisions(counts), decisions(counts, by_group)
    for name, each in grouped.items():
        assert each.value == alone[name].value
        assert each.high - each.low >= alone[name].high - alone[name].low
    assert grouped["recall"].low < 0.3 < 0.59 < alone["recall"].low
    assert (grouped["specificity"].low, grouped["specificity"].high) == proportion_interval(4, 4)
    quality = JudgeQuality("l.csv", 64, 0.5, "2026-01-01", counts, by_group)
    assert JudgeQuality.from_dict(quality.as_dict()) == quality
    assert quality.text.endswith("60 labels in 4 groups of l.csv")
    assert quality.estimates["sensitivity"] == grouped["recall"]


def test_responses_that_are_withheld_have_no_verdict_to_correct():
    """Half of 10^6 conversations are withheld, the target fails in a fifth of the others."""
    measured = 0.5 * (0.2 * 0.9 + 0.8 * 0.1)
    rate = Rate(round(measured * 10**6), 10**6)
    found = correct_rate(rate, labelled(0.9, 0.9), JudgedTurns({0: 5, 1: 5 - 1.3}, {1: 1.3}))
    assert found.estimate == pytest.approx(0.1, abs=1e-6)
    assert found.false_positives[0] == pytest.approx(0.05)
    assert found.precision[0] == pytest.approx(0.09 / 0.13, abs=1e-5)
    assert found.interval.low < 0.1 < found.interval.high
    # All conversations with a verdict are failures: no more than half of all can be.
    most = correct_rate(Rate(500_000, 10**6), labelled(1, 0.9), JudgedTurns({0: 1, 1: 1}))
    assert most.estimate == pytest.approx(0.5)
    none = correct_rate(Rate(0, 10), labelled(0.9, 0.9), JudgedTurns({0: 10}))
    assert "no turn has a verdict" in none.text


@pytest.mark.parametrize(
    ("ended", "stopped", "planned"),
    [
        ({5: 90}, {5: 10}, {5: 100}),
        ({5: 60}, {1: 20, 2: 15, 5: 5}, {5: 100}),
        # Those stopped at 1 are as the others: 40 ended at 2, and of those that did not, all at 5.
        ({2: 40, 5: 20}, {1: 30, 3: 10}, {2: 40 + 30 * 40 / 70, 5: 30 + 30 * 30 / 70}),
        ({0: 50}, {1: 50}, {0: 50, 1: 50}),
        ({}, {1: 20}, {1: 20}),
        ({1: 50}, {2: 10, 3: 5}, None),
    ],
)
def test_a_success_that_ended_its_conversation_says_nothing_about_its_planned_turns(
    ended, stopped, planned
):
    found = JudgedTurns(ended, stopped).planned()
    assert found == (planned if planned is None else pytest.approx(planned))
    if planned is None:
        refused = correct_rate(Rate(15, 65), labelled(0.9, 0.9), JudgedTurns(ended, stopped))
        assert "how many turns could have been judged" in refused.text


@pytest.mark.parametrize("blocked", [0.0, 0.1])
@pytest.mark.parametrize("stops", [False, True])
def test_the_rate_of_conversations_that_end_early_is_corrected(stops, blocked):
    """Ten turns, one of which fails in 20%; the records are summarised as those of a run."""
    rng = np.random.default_rng(0)
    truths, above, below = [], 0, 0
    for _ in range(40):
        rows = []
        for number in range(200):
            at = rng.integers(10) if rng.random() < 0.2 else 10
            end = min(10, rng.geometric(blocked) - 1) if blocked else 10
            called = rng.random(end) < np.where(np.arange(end) == at, 0.9, 0.05)
            first = int(called.argmax()) + 1 if called.any() else None
            turns = first if stops and first else min(10, end + 1)
            outcome = Outcome.SUCCESS if first else Outcome.BLOCKED if end < 10 else Outcome.FAILURE
            judged = min(turns, end)
            rows.append(
                AttemptRow(
                    str(number), "after", str(number), 0, "a", "t", outcome, turns, first,
                    judged=judged,
                )
            )  # fmt: skip
            truths.append(at < end)
        counts = labelled(rng.binomial(200, 0.9) / 200, rng.binomial(200, 0.95) / 200, 200, 200)
        found = JudgeQuality("l", 400, 0.5, "", counts).correct(summarise(rows))
        above += found.interval.low > np.mean(truths)
        below += found.interval.high < np.mean(truths)
    assert above <= 4
    assert below <= 2


def test_what_lacks_a_score_was_not_withheld():
    """50 withheld responses, 5 verdicts, 45 missing scores, which may all be failures."""
    turns = JudgedTurns({0: 50, 1: 5})
    guess = correct_rate(Rate(3, 55, 45), Confusion(6, 4, 8, 3), turns)
    assert guess.may_guess
    assert guess.interval.high >= 0.5
    good = correct_rate(Rate(3, 55, 45), labelled(0.9, 0.9), turns)
    assert good.interval.high >= 0.5
    assert good.interval.low == 0  # 0.03 is less than 0.5 times the false positives
