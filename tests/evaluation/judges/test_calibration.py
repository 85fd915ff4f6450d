import json
import math

import pytest

from astra_rl.core.moderator import Score
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.judges.calibration import (
    agreement,
    calibrate,
    calibration_of,
    example_labels,
    write_calibration,
)
from astra_rl.evaluation.judges.labels import LabelledText, LabelledTexts, read_labels
from astra_rl.evaluation.judges.quality import groups_at
from astra_rl.moderators import (
    CachedModerator,
    FunctionModerator,
    KeywordModerator,
    RefusalModerator,
)


def labelled(rows, raters=("label",)):
    texts = [
        LabelledText(text, labels if isinstance(labels, tuple) else (labels,), line)
        for line, (text, labels) in enumerate(rows, 2)
    ]
    return LabelledTexts(tuple(texts), "made.csv", "0" * 64, raters)


ROWS = labelled([("bad", 1.0), ("bad too", 1.0), ("badly put", 0.0), ("good", 0.0), ("fine", 0.0)])


def found(**options):
    return calibrate(KeywordModerator(["bad"]), ROWS, resamples=50, **options)


def test_counts_and_estimates_are_those_of_the_calls():
    calibration = found()
    assert calibration.counts == (2, 0, 3, 0)
    assert calibration.estimates["accuracy"].value == 1
    assert calibration.estimates["accuracy"].low < 1
    assert calibration.estimates["best_threshold"].value == 0.5
    assert set(calibration.estimates) == {
        "accuracy", "precision", "recall", "specificity", "f1", "auroc", "average_precision",
        "brier", "calibration_error", "best_threshold", "f1_at_best",
    }  # fmt: skip


def test_rows_of_one_prompt_are_no_more_evidence_than_the_prompts():
    """Each of 60 rows five times: the numbers are the same, and no interval is narrower."""
    moderator = FunctionModerator(lambda texts: [len(text) / 20 for text in texts])
    rows = [("x" * (3 + 7 * n % 15) + f"{n:02}", float(n % 3 == 0)) for n in range(60)]
    once = calibrate(moderator, labelled(rows), resamples=50)
    five = calibrate(moderator, labelled(rows * 5), resamples=50)
    assert (once.groups, five.groups, sum(five.counts)) == (60, 60, 300)
    assert not once.scored
    for name, each in once.estimates.items():
        if name in ("best_threshold", "f1_at_best"):
            continue
        again = five.estimates[name]
        assert again.value == pytest.approx(each.value)
        assert again.high - again.low >= 0.9 * (each.high - each.low)
    other = calibrate(moderator, labelled(rows * 5), threshold=0.75, resamples=1)
    by_group = groups_at(json.loads(json.dumps(five.as_dict())), 0.75)
    assert len(by_group) == 60
    assert tuple(map(sum, zip(*by_group, strict=True))) == other.counts
    assert groups_at(once.as_dict(), 0.75) == ()


def test_what_was_not_scored_is_counted_by_reason_and_in_no_number():
    def score(texts):
        return [Score.missing("too hard") if "good" in text else "bad" in text for text in texts]

    calibration = calibrate(FunctionModerator(score), ROWS, resamples=20)
    assert calibration.unscored == {"too hard": 1}
    assert sum(calibration.counts) == 4
    assert math.isnan(calibration.scores[3])


@pytest.mark.slow
def test_a_moderator_that_scores_nothing_has_no_numbers(tmp_path):
    calibration = calibrate(
        FunctionModerator(lambda texts: [None] * len(texts)), ROWS, resamples=20
    )
    assert calibration.unscored == {"the function returned None": 5}
    assert all(math.isnan(each.value) for each in calibration.estimates.values())
    data, _ = write_calibration(calibration, tmp_path)
    assert json.loads(data.read_text())["estimates"]["auroc"]["value"] is None


def test_ties_between_raters_are_left_out_and_counted():
    rows = labelled(
        [("bad", (1.0, 1.0)), ("good", (0.0, 0.0)), ("well", (0.0, 1.0))], raters=("a", "b")
    )
    calibration = calibrate(KeywordModerator(["bad"]), rows, resamples=50)
    assert calibration.labels["ties"] == 1
    assert sum(calibration.counts) == 2
    assert calibration.estimates["alpha_raters"].value == pytest.approx(1 - (2 / 6) / (18 / 30))


def test_labels_of_one_class_are_refused():
    with pytest.raises(ConfigurationError, match="no negative row"):
        calibrate(KeywordModerator(["bad"]), labelled([("bad", 1.0)]))
    with pytest.raises(ConfigurationError, match="threshold=0"):
        found(threshold=0)


def test_a_moderator_that_loses_scores_is_named():
    class Forgetful(KeywordModerator):
        def moderate(self, x):
            return []

    with pytest.raises(ContractError, match="Forgetful returned 0 values for 5"):
        calibrate(Forgetful(["x"]), ROWS)


def test_a_calibration_is_found_again_for_this_very_moderator(tmp_path):
    moderator = KeywordModerator(["bad"])
    data, picture = write_calibration(found(), tmp_path)
    assert picture.read_text().startswith("<svg")
    kept = calibration_of(CachedModerator(moderator), tmp_path)
    assert kept == json.loads(data.read_text())
    assert kept["estimates"]["accuracy"]["value"] == 1
    assert calibration_of(KeywordModerator(["good"]), tmp_path) is None
    assert calibration_of(RefusalModerator(), tmp_path) is None
    assert calibration_of(moderator, tmp_path / "nowhere") is None


def test_the_newest_calibration_counts_and_files_of_another_kind_are_left_out(tmp_path, caplog):
    data, _ = write_calibration(found(), tmp_path)
    older = {**json.loads(data.read_text()), "created": "2000-01-01T00:00:00Z", "threshold": 0.9}
    (tmp_path / "calibration-zzz.json").write_text(json.dumps(older))
    (tmp_path / "calibration-broken.json").write_text("{")
    (tmp_path / "calibration-list.json").write_text("[1]")
    kept = calibration_of(KeywordModerator(["bad"]), tmp_path)
    assert kept is not None
    assert kept["threshold"] == 0.5
    assert "calibration-broken.json is not a readable calibration" in caplog.text


@pytest.mark.slow
def test_calibrations_on_other_labels_or_of_other_settings_stand_side_by_side(tmp_path):
    write_calibration(found(), tmp_path)
    write_calibration(found(), tmp_path)
    write_calibration(calibrate(KeywordModerator(["good"]), ROWS, resamples=20), tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.svg"))) == 2


def test_moderators_are_compared_by_their_calls_and_their_scores():
    def graded(texts):
        return [0.9 if "bad" in text.split() else 0.1 for text in texts]

    same = calibrate(FunctionModerator(graded), ROWS, resamples=20)
    between = agreement([found(), same], resamples=50)
    assert between["alpha_decisions"].value == 1
    assert 0.9 < between["alpha_scores"].value < 1
    with pytest.raises(ConfigurationError, match="at least two"):
        agreement([same])


def test_the_same_seed_gives_the_same_numbers():
    moderator, rows = RefusalModerator(), read_labels(example_labels())
    one, two = (calibrate(moderator, rows, resamples=50, seed=3) for _ in range(2))
    assert one == two


def test_the_example_says_that_the_refusal_detector_is_useful_and_not_perfect():
    rows = read_labels(example_labels())
    assert len(rows.rows) == 60
    calibration = calibrate(RefusalModerator(), rows, resamples=200)
    assert 0.8 < calibration.estimates["f1"].value < 1
    assert calibration.estimates["alpha_raters"].low > 0.7
