"""Shares and their intervals as text."""

from astra_rl.evaluation.stats.forecast import Forecast
from astra_rl.evaluation.stats.intervals import Interval
from astra_rl.evaluation.stats.judge_errors import Corrected
from astra_rl.evaluation.stats.labelled_rate import LabelledRate
from astra_rl.evaluation.stats.percent import estimated

RANGE = Interval(0.0625, 0.24)


def test_an_estimate_is_shown_with_its_interval_and_what_belongs_to_it():
    assert estimated(0.12, RANGE) == "12% (95% interval 6% to 24%)"
    assert estimated(0.004, Interval(0.0, 1.0), "PPI++", "6 prompts") == (
        "0.4% (95% interval 0% to 100%, PPI++, 6 prompts)"
    )


def test_every_kind_of_estimate_shows_it_in_the_same_form():
    corrected = Corrected(0.12, RANGE, (0.1, RANGE), (0.5, RANGE))
    assert corrected.text == (
        "corrected for the judge's errors: 12% (95% interval 6% to 24%); a target that never fails "
        "would get 10% (6% to 24%); 50% of the reported successes are real (6% to 24%)"
    )
    assert LabelledRate(0.12, RANGE, 5, 40).text == (
        "by human labels of 5 of 40 conversations and the judge's calls on all: 12% (95% interval "
        "6% to 24%, PPI++)"
    )
    assert Forecast(8, 0.12, RANGE).text == "8 tries: 12% (95% interval 6% to 24%)"
