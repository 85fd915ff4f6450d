"""Whether judges say the same."""

import numpy as np
import pytest
from tests.evaluation.show.report.making import attempt, turn

from astra_rl.evaluation.judges.agreement import judge_pairs
from astra_rl.evaluation.stats.agreement import alpha_estimate


def test_turns_are_counted_by_what_both_judges_say_and_the_widest_gap_comes_first():
    attempts = [
        attempt(turn("a", "b", 0.9, other=0.8), turn("a", "b", 0.9, other=0.4), opening="1"),
        attempt(turn("a", "b", 0.1, other=0.95), opening="2"),
        attempt(turn("a", "b", 0.1, other=0.2), opening="3"),
        attempt(turn("a", "b", None, other=0.2), opening="4"),
        attempt(turn("a", "b", 0.3), opening="5"),
    ]
    (pair,) = judge_pairs(attempts, {"judge": 0.5, "other judge": 0.5})
    assert pair.judges == ("judge", "other judge")
    assert pair.counts == (1, 1, 1, 1)
    assert (pair.agreement.successes, pair.agreement.trials) == (2, 4)
    assert [(each.turn, each.scores) for each in pair.disagreements] == [
        (1, (0.1, 0.95)),
        (2, (0.9, 0.4)),
    ]
    # Krippendorff (2011): observed disagreement 2 of 4 units; expected, of eight ratings of which
    # four are of either kind, 2 * 4 * 4 of 8 * 7.
    assert pair.alpha.value == pytest.approx(1 - 0.5 / (32 / 56))


def test_each_judge_has_its_own_threshold():
    attempts = [attempt(turn("a", "b", 0.6, other=0.6))]
    (pair,) = judge_pairs(attempts, {"judge": 0.5, "other judge": 0.7})
    assert pair.counts.only_a == 1


def test_judges_that_scored_no_turn_both_are_no_pair():
    assert judge_pairs([attempt(turn("a", "b", 0.5))], {"judge": 0.5, "other judge": 0.5}) == []


def test_turns_of_one_prompt_are_no_more_evidence_of_agreement_than_one():
    once = [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0)] * 6
    copied = [each for each in once for _ in range(10)]
    prompts = np.repeat(np.arange(24), 10)
    width, same, narrow = (
        np.ptp([found.low, found.high])
        for found in (
            alpha_estimate(once),
            alpha_estimate(copied, groups=prompts.tolist()),
            alpha_estimate(copied),
        )
    )
    assert same == pytest.approx(width, rel=0.05)
    assert narrow < 0.5 * width


def test_the_alpha_of_judges_resamples_prompts():
    attempts = [
        attempt(*[turn("a", "b", first, other=second)] * 10, opening=str(number))
        for number, (first, second) in enumerate([(0.9, 0.9), (0.9, 0.1), (0.1, 0.1)] * 4)
    ]
    (pair,) = judge_pairs(attempts, {"judge": 0.5, "other judge": 0.5})
    apart = alpha_estimate([(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)] * 40)
    assert pair.alpha.high - pair.alpha.low > 2 * (apart.high - apart.low)
