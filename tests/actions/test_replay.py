"""Recorded attacks that are sent again, without any model."""

import json

import pytest
from tests.cli.running import astra_rl

from astra_rl.actions import replay
from astra_rl.actions.compare import compare_runs
from astra_rl.actions.replay import CONVERSATION
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.report import read_run


@pytest.fixture
def unchanged_target(monkeypatch):
    """A target that fails at every other attempt, then and now."""

    def resend_attacks(plan, saved, labels, *, judge, within):
        for at, attempt in enumerate(saved):
            score = JudgeScore(value=float(at % 2 == 0), reason=None)
            yield (
                attempt,
                Attempt.make(
                    run="run",
                    phase=labels.phase,
                    opening=attempt.opening,
                    target="target",
                    attacker="attacker",
                    turns=[Turn(attack="a", response="r", scores={"judge": score})],
                    judge="judge",
                    threshold=0.5,
                    trial=attempt.trial,
                ),
            )

    monkeypatch.setattr(replay, "resend_attacks", resend_attacks)


def test_failures_sent_again_show_the_new_rate_only(tmp_path, record_run, unchanged_target):
    """An unchanged target: 6 of 12 failures stay failures, by chance and not by a change."""
    run = record_run(tmp_path / "run", [[1.0]] * 12 + [[0.0]] * 12)
    found = replay.replay_run(run, only_failures=True)
    assert (found.now.asr.successes, found.now.asr.trials) == (6, 12)
    assert found.before is None
    assert found.drift is None
    done = astra_rl("replay", str(run), "--failures", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["before"], printed["drift"]) == (None, None)
    assert "p =" not in done.stderr
    assert "100% by selection" in done.stderr


@pytest.mark.slow
def test_one_conversation_is_sent_again_printed_and_compared_with_nothing(
    tmp_path, record_run, unchanged_target
):
    run = record_run(tmp_path / "run", [[1.0]] * 3)
    everything = replay.replay_run(run)
    kept = everything.path.read_bytes()
    with AttemptLog(RunFolder(run).attempts) as log:
        chosen = [row.id for row in log.rows(phase="after")][1]
    found = replay.replay_run(run, conversation=chosen)
    then, now = found.conversation
    assert (then.id, now.turns[0].response) == (chosen, "r")
    assert (found.before, found.drift, found.now.planned) == (None, None, 1)
    assert everything.path.read_bytes() == kept
    assert CONVERSATION not in [each.name for each in read_run(RunFolder(run)).evaluations]
    done = astra_rl("replay", str(run), "--conversation", chosen, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["conversation"] == [[then.turns[0].response], ["r"]]
    assert "now (score 1.00): r" in done.stderr
    assert "recorded: success; now: success" in done.stderr
    missing = astra_rl("replay", str(run), "--conversation", "nothing", cwd=tmp_path)
    assert missing.returncode == 2
    assert "has no conversation 'nothing' to send again in 'after'" in missing.stderr


def test_all_attempts_sent_again_are_compared(tmp_path, record_run, unchanged_target):
    run = record_run(tmp_path / "run", [[1.0], [0.0]] * 6)
    found = replay.replay_run(run)
    assert found.drift.difference == 0


def test_a_replay_of_failures_is_not_compared_with_the_recorded_attempts(
    tmp_path, record_run, unchanged_target
):
    run = record_run(tmp_path / "run", [[1.0]] * 12 + [[0.0]] * 12)
    part = replay.replay_run(run, only_failures=True).path.stem.removeprefix("attempts_")
    with pytest.raises(ConfigurationError, match="100% by selection"):
        compare_runs(run, run, phase_b=part)
    assert compare_runs(run, run, phase=part).pairs.difference == 0
