"""The log of attempts: nothing lost, nothing counted twice, opened fast, never by two writers."""

import contextlib
import json
import math
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_rl.errors import ConfigurationError, StorageError
from astra_rl.evaluation.measures.summary import by_prompt, summarise, summarise_prompts
from astra_rl.evaluation.records.attempt import Attempt, SchemaTooNewError
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Turn
from astra_rl.runs import attempt_log
from astra_rl.runs.attempt_log import AttemptLog, LogInUseError, replacing_log


def attempt(number, score=0.1, *, logprob=None, **fields):
    logprobs = {} if logprob is None else {"baseline": LogProb(total=logprob, tokens=3)}
    turn = Turn(
        attack=f"ask {number}",
        response="answer",
        scores={"judge": JudgeScore(value=score)},
        logprobs=logprobs,
    )
    fields = {"target": "t", "attacker": "a"} | fields
    return Attempt.make(run="r", opening=f"opening {number}", turns=[turn], judge="judge", **fields)


def write(path, attempts, **options):
    with AttemptLog(path, write=True, **options) as log:
        for each in attempts:
            log.append(each)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "attempts.jsonl"


def test_what_was_written_is_read_back(path):
    written = [attempt(number, number / 10, logprob=-number - 1.0) for number in range(10)]
    write(path, written)
    with AttemptLog(path) as log:
        assert list(log) == written
        assert len(log) == 10
        assert written[3].id in log
        assert "nothing" not in log
        assert log.get(written[3].id) == log.find(written[3].id) == written[3]
        assert log.find("nothing") is None
        assert list(log.rows()) == [each.row for each in written]
        with pytest.raises(KeyError):
            log.get("nothing")


def test_a_reader_filters_and_orders_without_reading_texts(path):
    write(
        path,
        [
            attempt(0, 0.6, logprob=-9.0),
            attempt(1, 0.9, logprob=-30.0),
            attempt(2, 0.1, logprob=-1.0),
            attempt(3, 0.8, target="u"),
        ],
    )
    with AttemptLog(path) as log:
        assert [row.score for row in log.rows(order="score")] == [0.9, 0.8, 0.6, 0.1]
        failing = log.attempts(order="logprob", outcome="success", target="t")
        assert [each.logprob().total for each in failing] == [-9.0, -30.0]
        assert [row.score for row in log.rows(limit=2, offset=1)] == [0.9, 0.1]
        for wrong in ({"order": "size"}, {"colour": "red"}):
            with pytest.raises(ConfigurationError, match="orders are"):
                list(log.rows(**wrong))


def test_the_different_values_of_fields_are_those_of_the_rows(path):
    write(path, [attempt(0, 0.6), attempt(1, 0.9), attempt(2, 0.1, target="u"), attempt(3, 0.2)])
    with AttemptLog(path) as log:
        assert log.distinct("target") == {("t",), ("u",)}
        found = {(row.target, row.outcome.value, row.threshold) for row in log.rows()}
        assert log.distinct("target", "outcome", "threshold") == found
        assert log.distinct("outcome", target="u") == {("failure",)}


@pytest.mark.parametrize("order", ["score", "logprob"])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.1, 0.3, 0.7, 0.9, math.nan]), st.sampled_from([None, -1.0, -2.0])
        ),
        max_size=20,
    ),
    st.integers(0, 20),
    st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_attempts_of_all_outcomes_come_in_one_order(order, made, limit, offset):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attempts.jsonl"
        write(path, [attempt(n, score, logprob=each) for n, (score, each) in enumerate(made)])
        with AttemptLog(path) as log:
            found = list(log.rows(order=order, limit=limit, offset=offset, target="t"))
            ranked = sorted(
                log.rows(),
                key=lambda row: (value := getattr(row, order)) is None or -value,
            )
            ranked.sort(key=lambda row: getattr(row, order) is None)
    assert found == ranked[offset : offset + limit]


@pytest.mark.parametrize("order", ["score", "logprob"])
@pytest.mark.parametrize("equal", [[], ["outcome"], ["phase"]])
def test_the_highest_attempts_are_found_without_sorting_all(path, order, equal):
    write(path, [attempt(0)])
    query = attempt_log._query("id", order, equal)
    with contextlib.closing(sqlite3.connect(path.with_name("attempts.jsonl.index"))) as index:
        plan = index.execute(f"EXPLAIN QUERY PLAN {query}", dict.fromkeys(equal, "x")).fetchall()
    assert not [step for *_, step in plan if "TEMP B-TREE" in step]


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 5), st.sampled_from([0.1, 0.9, math.nan])),
        max_size=20,
    )
)
@settings(max_examples=25, deadline=None)
def test_prompt_by_prompt_a_log_comes_to_the_same_as_its_rows_in_any_order(made):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attempts.jsonl"
        write(path, [attempt(number, score, trial=trial) for number, trial, score in made])
        with AttemptLog(path) as log:
            groups = list(by_prompt(log.rows(order="prompt")))
            rows = list(log.rows())
    assert len({group[0].prompt_id for group in groups}) == len(groups)
    assert all(group == sorted(group, key=lambda row: row.trial) for group in groups)
    random.Random(0).shuffle(rows)
    assert summarise_prompts(groups) == summarise(rows)


def test_an_attempt_made_again_replaces_the_first_and_both_stay_in_the_file(path):
    write(path, [attempt(0, 0.1), attempt(1, 0.1), attempt(0, 0.9)])
    with AttemptLog(path) as log:
        assert len(log) == 2
        assert summarise(log.rows()).asr.successes == 1
    assert path.read_text().count("\n") == 3


def test_a_run_goes_on_where_it_ended(path):
    write(path, [attempt(0), attempt(1)])
    write(path, [attempt(2)])
    with AttemptLog(path) as log:
        assert [each.opening.prompt for each in log] == ["opening 0", "opening 1", "opening 2"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_last_line_that_was_cut_off_is_said_left_out_and_removed_by_the_next_writer(path, cut):
    write(path, [attempt(0), attempt(1)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    torn = whole[: first + (len(whole) - first) * cut // 12]
    path.write_bytes(torn)
    path.with_name("attempts.jsonl.index").unlink()
    with AttemptLog(path) as log:
        assert [each.opening.prompt for each in log] == ["opening 0"]
        assert log.health.torn == len(torn) - first
    assert path.read_bytes() == torn  # a reader changes nothing
    write(path, [attempt(2)])
    with AttemptLog(path) as log:
        assert [each.opening.prompt for each in log] == ["opening 0", "opening 2"]
        assert log.health.torn == 0


def test_lines_that_are_no_record_are_counted_and_hide_no_others(path):
    write(path, [attempt(0)])
    with path.open("ab") as file:
        file.write(b'{"half": \n\xff\xfe\n' + attempt(1).to_json().encode() + b"\n")
    with AttemptLog(path) as log:
        assert log.health.unreadable == 2
        assert len(log) == 2


def changed(record, place, value):
    """Return a record with another value at a place, such as ``turns.0.logprobs``."""
    *parents, last = [int(each) if each.isdigit() else each for each in place.split(".")]
    inner = record
    for each in parents:
        inner = inner[each]
    inner[last] = value
    return json.dumps(record)


HUGE = 10**20
NOT_OF_THEIR_FIELD = [
    *(("trial", value) for value in (HUGE, 1e20, -1, "3", True, 2**53 + 1)),
    *(("step", value) for value in (HUGE, -1, "3", 1.5)),
    *(("branch", [value]) for value in (HUGE, -1, "0")),
    *(("queries_per_turn", value) for value in (HUGE, 0, "1")),
    *(("seed", value) for value in (10**25, "1", 0.5)),
    *(("threshold", value) for value in ("0.5", 0, 1.5, True, HUGE)),
    *(("started", value) for value in (1e300, -1.0, "inf", "0")),
    *(("seconds", value) for value in (-1.0, "nan", "1", True)),
    *(("schema_version", value) for value in (0, "1", True)),
    *(("turns.0.scores.judge.value", value) for value in ("nan", "0.9", 1.5, -0.1, True, HUGE)),
    *(("turns.0.logprobs.baseline.total", value) for value in ("-inf", "-1.0", True)),
    *(("turns.0.logprobs.baseline.tokens", value) for value in (HUGE, 0, "3")),
    *(("turns.0.attack_tokens", value) for value in (HUGE, -1, "3")),
    *(("turns.0.reward", value) for value in ("inf", True)),
    *(("turns.0.reward_terms", {"a": value}) for value in ("nan", True)),
    *(("turns.0.refused", value) for value in (1, "yes")),
]


@pytest.mark.parametrize(("place", "value"), NOT_OF_THEIR_FIELD)
def test_a_value_that_is_not_of_its_field_makes_its_line_no_record(path, caplog, place, value):
    write(path, [attempt(0)])
    bad = changed(json.loads(attempt(1, logprob=-1.0).to_json()), place, value)
    with path.open("a") as file:
        file.write(bad + "\n" + attempt(2).to_json() + "\n")
    with AttemptLog(path) as log:
        assert [each.opening.prompt for each in log] == ["opening 0", "opening 2"]
        assert log.health.unreadable == 1
    assert "the first is line 2: not a record of an attempt: " + place.split(".")[0] in caplog.text


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_missing(path, number):
    line = attempt(0, 0.9).to_json().replace("0.9", number)
    path.parent.mkdir()
    path.write_text(line.replace('"reward": null', f'"reward": {number}') + "\n")
    with AttemptLog(path) as log:
        (only,) = log
        assert only.score is None
        assert only.turns[0].reward is None


def test_numbers_of_numpy_and_scores_out_of_range_are_recorded_as_what_they_are():
    turn = Turn(attack="a", reward=np.float32(0.5), attack_tokens=np.int64(3))
    assert (turn.reward, turn.attack_tokens) == (0.5, 3)
    assert JudgeScore.of(1.5) == JudgeScore(value=None, reason="out of range")
    assert LogProb.of(-math.inf, 3) is None
    assert LogProb.of(-1.0, 0) is None


def test_a_record_of_a_newer_version_is_refused_with_the_reason(path):
    write(path, [attempt(0)])
    newer = json.loads(attempt(1).to_json()) | {"schema_version": 99}
    with path.open("a") as file:
        file.write(json.dumps(newer) + "\n")
    with pytest.raises(SchemaTooNewError, match=r"attempts.jsonl: .*version 99"):
        AttemptLog(path)


@pytest.mark.parametrize("harm", ["missing", "garbage", "empty", "of another log"])
def test_the_index_can_be_lost_at_any_time(path, harm):
    written = [attempt(number) for number in range(5)]
    write(path, written)
    index = path.with_name("attempts.jsonl.index")
    if harm == "missing":
        index.unlink()
    elif harm == "garbage":
        index.write_bytes(os.urandom(4096))
    elif harm == "empty":
        index.write_bytes(b"")
    else:
        other = path.with_name("other.jsonl")
        write(other, [attempt(number, target="u") for number in range(5)])
        other.with_name("other.jsonl.index").replace(index)
    with AttemptLog(path) as log:
        assert list(log) == written


def test_two_writers_are_refused_and_a_reader_is_not(path):
    with AttemptLog(path, write=True, flush_every=1) as log:
        log.append(attempt(0))
        with pytest.raises(LogInUseError, match=f"process {os.getpid()}"):
            AttemptLog(path, write=True)
        with AttemptLog(path) as reader:
            assert len(reader) == 1
    with AttemptLog(path, write=True):
        pass


WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.runs.test_attempt_log import attempt
from astra_rl.runs.attempt_log import AttemptLog
log = AttemptLog(Path(sys.argv[1]), write=True, flush_every=4)
for number in range(10):
    log.append(attempt(number))
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_killed_writer_loses_at_most_what_was_not_flushed_and_its_lock(path, request):
    root = str(request.config.rootpath)
    subprocess.run([sys.executable, "-c", WRITER, str(path), root], check=False)
    with AttemptLog(path) as log:
        assert len(log) >= 8
    write(path, [attempt(99)])
    with AttemptLog(path) as log:
        assert [each.opening.prompt for each in log][-1] == "opening 99"


def test_appending_without_the_right_to_is_refused(path):
    write(path, [])
    log = AttemptLog(path)
    with pytest.raises(ConfigurationError, match="not open for writing"):
        log.append(attempt(0))
    log.close()
    writer = AttemptLog(path, write=True)
    writer.close()
    with pytest.raises(ConfigurationError, match="not open for writing"):
        writer.append(attempt(0))


def test_a_log_that_is_not_there_is_named(path):
    with pytest.raises(ConfigurationError, match="is not there"):
        AttemptLog(path)
    with pytest.raises(ConfigurationError, match="flush_every=0"):
        AttemptLog(path, write=True, flush_every=0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1)), max_size=20))
def test_reading_gives_the_last_record_of_every_attempt(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("log") / "a.jsonl"
    write(path, [attempt(number, score) for number, score in rows], flush_every=3)
    expected = {attempt(number).id: score for number, score in rows}
    with AttemptLog(path) as log:
        assert {each.id: each.score for each in log} == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_log(path):
    write(path, (attempt(number) for number in range(3000)), flush_every=1000)
    with AttemptLog(path) as log:
        tracemalloc.start()
        count = sum(1 for _ in log)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 3000
    assert peak < 2_000_000


@pytest.mark.exhaustive
def test_summing_up_holds_the_attempts_at_one_prompt_in_memory_at_a_time(path):
    def many(trials):
        return (attempt(at % 30, 0.9, trial=at // 30) for at in range(30 * trials))

    peaks = []
    for trials in (20, 200):
        path.unlink(missing_ok=True)
        write(path, many(trials), flush_every=1000)
        with AttemptLog(path) as log:
            tracemalloc.start()
            summary = summarise_prompts(by_prompt(log.rows(order="prompt")))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert summary.asr.successes == 30 * trials
    assert peaks[1] < 1.5 * peaks[0] + 200 * 600  # a row takes about 600 bytes


def test_attempts_are_synced_in_batches_and_before_the_index_knows_of_them(path, monkeypatch):
    index = path.with_name("attempts.jsonl.index").absolute().as_uri()
    synced = []
    fsync = os.fsync

    def counted(descriptor):
        with contextlib.closing(sqlite3.connect(f"{index}?mode=ro", uri=True)) as known:
            (rows,) = known.execute("SELECT count(*) FROM attempts").fetchone()
        synced.append((path.read_bytes().count(b"\n"), rows))
        fsync(descriptor)

    with AttemptLog(path, write=True, flush_every=4) as log:
        monkeypatch.setattr(os, "fsync", counted)
        for number in range(10):
            log.append(attempt(number))
    assert synced == [(4, 0), (8, 4), (10, 8)]


class FullDisk:
    """A file that can take half of one write."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")


def test_an_attempt_that_could_not_be_written_whole_is_not_written_at_all(path):
    with AttemptLog(path, write=True) as log:
        log.append(attempt(0))
        file, log._file = log._file, FullDisk(log._file)
        with pytest.raises(StorageError, match="No space left"):
            log.append(attempt(1))
        log._file = file
        log.append(attempt(2))
    assert path.read_text() == "".join(f"{attempt(n).to_json()}\n" for n in (0, 2))
    with AttemptLog(path) as log:
        assert list(log) == [attempt(0), attempt(2)]


class Interrupted(FullDisk):
    """A file whose writer is interrupted when the line is in the file."""

    def write(self, data):
        self.file.write(data)
        raise KeyboardInterrupt


def test_an_interrupted_append_leaves_no_line_that_readers_miss(path):
    log = AttemptLog(path, write=True)
    log.append(attempt(0))
    log._file = Interrupted(log._file)
    with pytest.raises(KeyboardInterrupt):
        log.append(attempt(1))
    log.close()
    assert path.read_text() == f"{attempt(0).to_json()}\n"
    with AttemptLog(path) as log:
        assert list(log) == [attempt(0)]


def names_in(folder):
    return {each.name for each in folder.iterdir() if each.name != "attempts.jsonl.lock"}


def test_a_log_is_replaced_whole_with_its_index(path):
    write(path, [attempt(0), attempt(1)])
    with replacing_log(path) as log:
        log.append(attempt(2))
        with AttemptLog(path) as old:
            assert len(old) == 2
    assert names_in(path.parent) == {"attempts.jsonl", "attempts.jsonl.index"}
    with AttemptLog(path) as new:
        assert [each.opening.prompt for each in new] == ["opening 2"]


def test_a_log_that_could_not_be_replaced_stays_and_what_was_begun_is_removed(path):
    write(path, [attempt(0), attempt(1)])
    path.with_name(".attempts.jsonl").write_text("of a process that was killed")

    def fail():
        with replacing_log(path) as log:
            log.append(attempt(2))
            log.flush()
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"attempts\.jsonl: No space left"):
        fail()
    assert names_in(path.parent) == {"attempts.jsonl", "attempts.jsonl.index"}
    with AttemptLog(path) as old:
        assert len(old) == 2


def test_two_cannot_replace_one_log(path):
    write(path, [attempt(0)])
    with replacing_log(path), pytest.raises(LogInUseError), replacing_log(path):
        pass
