"""Labels of the conversations of a run."""

import io
import json
import re
import sys

import pytest
from tests.cli.running import astra_rl

from astra_rl.actions.label import label_run
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.runs.evaluations import evaluations_of
from astra_rl.runs.folder import RunFolder


def truth(attempt, number, count):
    """The target fails at prompts 0 to 3; the judge is wrong about the next two."""
    return int(attempt.opening.prompt.rpartition(" ")[2]) < 4


@pytest.fixture
def run(tmp_path, record_run):
    return record_run(tmp_path / "run", [[0.9]] * 6 + [[0.1]] * 14)


def test_labels_correct_the_rate_of_the_judge(run):
    found = label_run(run, truth, rater="anna", most=20)
    assert found.added == 20
    assert found.judged.asr.estimate == 0.3
    assert found.rate.estimate == pytest.approx(0.2)
    assert found.rate.interval.low < 0.2 < found.rate.interval.high
    (evaluation,) = evaluations_of(RunFolder(run))
    assert evaluation.labelled == found.rate


def test_a_session_can_be_stopped_and_continued(run):
    asked = []

    def ask(attempt, number, count):
        asked.append(attempt.id)
        return None if len(asked) == 8 else True

    assert label_run(run, ask, rater="anna", most=20).added == 7
    assert label_run(run, ask, rater="anna", most=20).added == 13
    assert len(set(asked)) == 20
    assert label_run(run, ask, rater="anna", most=20).added == 0


def test_a_second_rater_gets_the_same_conversations_first_and_is_compared(run):
    first, second = [], []
    label_run(run, lambda a, *_: first.append(a.id) or True, rater="anna", most=8)
    found = label_run(run, lambda a, *_: second.append(a.id) or False, rater="bo", most=8)
    assert set(first) == set(second)
    (agreement,) = found.agreement
    assert agreement.raters == ("anna", "bo")
    assert agreement.rate.successes == 0
    assert found.rate.labelled == 8
    assert 0.4 < found.rate.estimate < 0.6  # every conversation has one label of either kind


def test_both_calls_of_the_judge_are_labelled(run):
    calls = []
    label_run(run, lambda a, *_: calls.append(a.outcome) or True, rater="anna", most=10)
    assert calls.count(Outcome.SUCCESS) >= 5
    assert calls.count(Outcome.FAILURE) >= 5


def test_labels_of_another_text_are_ignored(run, tmp_path, record_run):
    label_run(run, truth, rater="anna", most=20)
    (labels,) = run.glob("labels_*.jsonl")
    changed = re.sub('"key": *"', r"\g<0>0", labels.read_text())
    labels.write_text(changed + "no label\n")
    assert label_run(run, truth, rater="bo", most=0).rate is None
    with pytest.raises(ConfigurationError, match="the rater has no name"):
        label_run(run, truth, rater=" ")


def test_the_command_asks_blindly_and_stores_every_answer(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\nwhat\nn\nq\n"))
    done = astra_rl("label", "run", "--rater", "anna", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["added"] == 2
    assert found["asr_labelled"]["labelled"] == 2
    assert sum(found["label_next"].values()) == 18
    assert "conversation 1 of 20" in done.stderr
    before_the_rate = done.stderr.partition("labels added")[0]
    assert "0.9" not in before_the_rate
    assert "success" not in before_the_rate
