"""Parts of a run: what they hold, and how much of it was planned."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.recorded import Recorded, plan_attempts, planned_attempts


def record(path, phase, count):
    with AttemptLog(path, write=True) as log:
        for index in range(count):
            turn = Turn(attack="a", response="b", scores={"judge": JudgeScore(value=0.9)})
            log.append(
                Attempt.make(
                    run="r",
                    phase=phase,
                    opening=f"opening {index}",
                    target="t",
                    attacker="a",
                    turns=[turn],
                    judge="judge",
                )
            )


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    record(folder.attempts, "after", 2)
    record(folder.attempts_of("direct"), "direct", 3)
    return folder


def test_a_part_is_read_from_the_record_of_the_run_or_from_a_file_of_its_own(folder):
    for phase, count in (("after", 2), ("direct", 3)):
        with Recorded(folder, phase) as recorded:
            assert len(list(recorded.rows())) == len(list(recorded.attempts())) == count
            assert recorded.planned is None
            assert recorded.summary().never_made == 0


def test_what_was_planned_and_never_made_is_an_error(folder):
    plan_attempts(folder, "after", 5)
    plan_attempts(folder, "before", 4)
    assert planned_attempts(folder) == {"after": 5, "before": 4}
    with Recorded(folder, "after") as recorded:
        summary = recorded.summary()
    assert (summary.never_made, summary.outcomes[Outcome.ERROR]) == (3, 3)
    assert summary.asr.bounds == (2 / 5, 1.0)
    with Recorded(folder, "before") as recorded:  # stopped before the first
        assert recorded.summary().outcomes[Outcome.ERROR] == 4


def test_a_part_that_is_not_there_is_refused_with_those_that_are(folder):
    with pytest.raises(ConfigurationError, match="it has after, direct"):
        Recorded(folder, "never")


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"after": "many"}', '{"after": 1e999}', '{"after": -1}']
)
def test_a_plan_that_cannot_be_read_is_one_message(folder, text):
    folder.planned.write_text(text)
    with pytest.raises(ConfigurationError, match=r"cannot read .*planned\.json"):
        Recorded(folder, "after")


def test_plans_that_are_stored_at_the_same_time_are_all_kept(folder):
    """Several ``astra-rl score`` may end at the same time; the lock excludes threads, too."""
    before = planned_attempts(folder)
    expected = {f"part {number}": number for number in range(24)}
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda plan: plan_attempts(folder, *plan), expected.items()))
    assert planned_attempts(folder) == {**before, **expected}
