"""The index of a record: who reads never holds up who writes, and misses nothing."""

import contextlib
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tests.hostile_lines import LINE, changed_lines
from tests.runs.test_attempt_log import attempt, write

import astra_rl.runs.attempt_index as record_index
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt, SchemaTooNewError
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.runs import index_seal, verified_logs
from astra_rl.runs.attempt_log import AttemptLog, replacing_log

COUNT = 50


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "attempts.jsonl"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(record_index, "BATCH", 7)


def index_of(path):
    return path.with_name("attempts.jsonl.index")


def leave_behind(path, by):
    """Write a record whose index lacks its last attempts: its writer died before it was done."""
    write(path, map(attempt, range(COUNT - by)))
    kept = path.with_name("kept")
    index_of(path).replace(kept)
    write(path, map(attempt, range(COUNT - by, COUNT)))
    record_index.remove_index(path)
    kept.replace(index_of(path))


def make_missing(path):
    write(path, map(attempt, range(COUNT)))
    index_of(path).unlink()


def make_damaged(path):
    write(path, map(attempt, range(COUNT)))
    index_of(path).write_bytes(b"SQLite format 3\0" + os.urandom(4096))


HARM = {
    "behind": lambda path: leave_behind(path, 20),
    "missing": make_missing,
    "damaged": make_damaged,
}


@pytest.fixture(params=HARM)
def harmed(path, request):
    HARM[request.param](path)
    return path


@pytest.mark.slow
def test_a_writer_can_begin_while_a_reader_is_catching_up(harmed, monkeypatch):
    """The writer is another process: it opens the record, appends and closes it."""
    insert, calls = record_index.insert, []
    outcome = []

    def interrupted(*arguments):
        insert(*arguments)
        calls.append(arguments)
        if len(calls) == 10:
            outcome.append(in_another_process(harmed))

    monkeypatch.setattr(record_index, "insert", interrupted)
    with AttemptLog(harmed) as log:
        assert len(log) >= COUNT
    assert outcome == [0]
    with AttemptLog(harmed) as log:
        assert [each.opening.prompt for each in log][-1] == "opening 999"
        assert len(log) == COUNT + 1


WRITER = """
import sys
from tests.runs.test_attempt_log import attempt, write
write(sys.argv[1], [attempt(999)])
"""


def in_another_process(path):
    command = [sys.executable, "-c", WRITER, str(path)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode


def test_a_writer_does_not_wait_for_a_reader_that_was_stopped_while_it_added(path, monkeypatch):
    monkeypatch.setattr(record_index, "PATIENCE", 0.05)
    write(path, [attempt(0)])
    with contextlib.closing(sqlite3.connect(index_of(path))) as stopped:
        with AttemptLog(path, write=True) as log:
            stopped.execute("BEGIN IMMEDIATE")
            log.append(attempt(1))
            log.flush()  # on disk; the index has to wait
            with AttemptLog(path) as reader:
                assert len(reader) == 1
        with AttemptLog(path, write=True) as log:
            log.append(attempt(2))
        with AttemptLog(path) as reader:
            assert [each.opening.prompt for each in reader] == [f"opening {n}" for n in range(3)]


def test_an_index_that_was_behind_is_caught_up_for_all_who_come_later(path):
    leave_behind(path, 20)
    for _ in range(2):
        with AttemptLog(path) as log:
            assert len(log) == COUNT
    with contextlib.closing(sqlite3.connect(index_of(path))) as index:
        assert index.execute("SELECT count(*) FROM attempts").fetchone()[0] == COUNT


def test_readers_leave_nothing_behind_and_an_index_that_others_can_read(harmed):
    with AttemptLog(harmed) as first, AttemptLog(harmed) as second:
        assert len(first) == len(second) == COUNT
    names = {each.name for each in harmed.parent.iterdir()}
    known = {"attempts.jsonl" + end for end in ("", ".lock", ".index", ".index-wal", ".index-shm")}
    assert names <= known
    log, index = harmed.stat().st_mode, index_of(harmed).stat().st_mode
    assert oct(index & 0o777) == oct(log & 0o777)


def test_what_a_killed_reader_left_is_removed_by_the_next_writer(path):
    write(path, [attempt(0)])
    left = path.with_name(".attempts.jsonl.index-12-ab")
    left.write_bytes(b"half an index")
    write(path, [attempt(1)])
    assert not left.exists()


def test_where_nothing_can_be_written_a_reader_misses_nothing_all_the_same(harmed, monkeypatch):
    """As in a folder that is read-only, also for root: nothing is made in it."""
    before = {each.name: each.read_bytes() for each in harmed.parent.iterdir()}
    connect = sqlite3.connect

    def read_only(database, **options):
        connection = connect(database, **options)
        if str(database) and "mode=ro" not in str(database):
            connection.close()
            error = sqlite3.OperationalError("attempt to write a readonly database")
            error.sqlite_errorcode = sqlite3.SQLITE_READONLY
            raise error
        return connection

    monkeypatch.setattr(record_index.sqlite3, "connect", read_only)
    with AttemptLog(harmed) as log:
        assert len(log) == COUNT
    after = {each.name: each.read_bytes() for each in harmed.parent.iterdir()}
    assert {name: after[name] for name in before} == before


def test_a_line_that_is_being_written_is_not_said_to_be_cut_off(path, caplog):
    with AttemptLog(path, write=True) as log:
        log.append(attempt(0))
        log.flush()
        log._file.write(b'{"half": ')
        log._file.flush()
        with caplog.at_level(logging.WARNING), AttemptLog(path) as reader:
            assert len(reader) == 1
            assert reader.health.torn == 0
        assert caplog.text == ""
        log._file.truncate(log._file.tell() - 9)


# What others made of an index. Each case changes the files of a log of COUNT attempts, of which
# every tenth is a success.


def forge_rows(path):
    with contextlib.closing(sqlite3.connect(index_of(path))) as index, index:
        index.execute("UPDATE attempts SET outcome = 'failure', score = 0.0")


def delete_rows(path):
    with contextlib.closing(sqlite3.connect(index_of(path))) as index, index:
        index.execute("DELETE FROM attempts WHERE outcome = 'success'")


def swap_rows(path):
    with contextlib.closing(sqlite3.connect(index_of(path))) as index, index:
        first, second = index.execute("SELECT id, seal FROM attempts LIMIT 2").fetchall()
        index.execute("UPDATE attempts SET id = 'x', seal = ? WHERE id = ?", (first[1], second[0]))


def make_endless_view(path):
    with contextlib.closing(sqlite3.connect(index_of(path))) as index, index:
        index.execute("ALTER TABLE attempts RENAME TO kept")
        index.execute(
            "CREATE VIEW attempts AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) "
            "SELECT kept.* FROM kept, n"
        )


def claim_that_all_is_indexed(path):
    with contextlib.closing(sqlite3.connect(index_of(path))) as index, index:
        index.execute("DELETE FROM attempts")
        index.execute("UPDATE state SET unreadable = ?", (COUNT,))


def make_size_enormous(path):
    with contextlib.closing(sqlite3.connect(index_of(path))) as index, index:
        index.execute("UPDATE attempts SET size = 1 << 62 WHERE sequence = 1")


def edit_log_in_place(path):
    text = path.read_text().replace('"value": 0.9', '"value": 0.2')
    path.write_text(text.replace('"outcome": "success"', '"outcome": "failure"'))


def shorten_log(path):
    """Restore the log from a copy that was made when it had fewer attempts."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-20]))


def copy_index_of_newer_log(path):
    """The index has all rows in its write-ahead log, as after a copy of a run in progress."""
    lines = path.read_bytes().splitlines(keepends=True)
    record_index.remove_index(path)
    path.unlink()
    with AttemptLog(path, write=True, flush_every=1) as log:
        for line in lines:
            log.append(Attempt.from_json(line))
        parts = {end: index_of(path).with_name(index_of(path).name + end) for end in ("", "-wal")}
        kept = {end: part.read_bytes() for end, part in parts.items()}
    record_index.remove_index(path)
    for end, data in kept.items():
        parts[end].write_bytes(data)
    path.write_bytes(b"".join(lines[:20]))


FORGERIES = [
    forge_rows,
    delete_rows,
    swap_rows,
    make_endless_view,
    claim_that_all_is_indexed,
    make_size_enormous,
    edit_log_in_place,
    shorten_log,
    copy_index_of_newer_log,
]


@pytest.fixture
def remembering(monkeypatch, tmp_path):
    """Small logs are remembered as soon as they are verified."""
    monkeypatch.setattr(verified_logs, "SMALLEST", 0)
    monkeypatch.setattr(verified_logs, "SETTLED", 0)
    monkeypatch.setenv("ASTRA_RL_CACHE", str(tmp_path / "cache"))


def verify(path):
    """Open a log, so that it is remembered; return the times that a forger may restore."""
    with AttemptLog(path) as log:
        assert len(log) > 0
    return after_a_tick(path)


def after_a_tick(path):
    """Wait until a change of the files has another time; return the times they have now."""
    probe, parts = path.with_name("probe"), (path, index_of(path))
    while max(part.stat().st_ctime_ns for part in parts) >= change_time(probe):
        pass  # until a change has another time: the clock of the file system is coarse
    return {part: (part.stat().st_atime_ns, part.stat().st_mtime_ns) for part in parts}


def change_time(probe):
    probe.write_bytes(b"")
    return probe.stat().st_ctime_ns


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
@pytest.mark.parametrize("written", [False, True], ids=["read", "write"])
@pytest.mark.parametrize(
    "remembered", ["never", "by a reader", "by its writer", "by a killed writer"]
)
@pytest.mark.usefixtures("remembering")
def test_an_index_that_is_not_of_its_log_is_made_again(
    path, forge, written, remembered, monkeypatch
):
    if remembered == "by its writer":
        monkeypatch.setattr(verified_logs, "WRITTEN", 0)
    made = [attempt(number, 0.9 if number % 10 == 0 else 0.1) for number in range(COUNT)]
    if remembered == "by a killed writer":
        in_killed_writer(path, made)
    else:
        write(path, made)
    if "writer" in remembered:
        assert is_remembered(path)
    times = {"never": lambda path: {}, "by a reader": verify}.get(remembered, after_a_tick)(path)
    forge(path)
    for part, each in times.items():
        if part.exists():
            os.utime(part, ns=each)
    expected = [Attempt.from_json(line) for line in path.read_bytes().splitlines()]
    with AttemptLog(path, write=written) as log:
        assert list(log) == expected
        assert list(log.rows()) == [each.row for each in expected]
        assert log.health.unreadable == 0
        successes = [each.id for each in expected if each.outcome == "success"]
        assert [row.id for row in log.rows(outcome="success", order="score")] == successes
    write(path, [attempt(999)])
    with AttemptLog(path) as log:
        assert list(log) == [*expected, attempt(999)]


def is_remembered(path):
    return verified_logs.is_verified(path, verified_logs.current_status(path, index_of(path)))


def in_killed_writer(path, attempts, *, then=lambda log: None):
    """Append attempts in a process that is killed before it closes the log."""
    child = os.fork()
    if child == 0:
        log = AttemptLog(path, write=True, flush_every=20)
        for each in attempts:
            log.append(each)
        then(log)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def must_not_be_called(monkeypatch, *names):
    for name in names:
        monkeypatch.setattr(record_index, name, None)


@pytest.mark.parametrize("unflushed", [0, 7])
@pytest.mark.usefixtures("remembering")
def test_what_a_killed_writer_left_is_indexed_from_where_the_index_ends(
    path, unflushed, monkeypatch
):
    count = 40 + unflushed
    in_killed_writer(path, map(attempt, range(count)))
    after_a_tick(path)
    must_not_be_called(monkeypatch, "is_derived_from")
    for _ in range(2):  # what the first one added is not verified by the second
        with AttemptLog(path) as log:
            assert list(log) == [attempt(number) for number in range(count)]
        after_a_tick(path)
    write(path, [attempt(999)])
    monkeypatch.undo()
    with AttemptLog(path) as log:
        assert len(log) == count + 1


@pytest.mark.usefixtures("remembering")
def test_a_line_that_a_killed_writer_left_incomplete_is_left_out(path, caplog):
    in_killed_writer(
        path, map(attempt, range(25)), then=lambda log: log._file.write(b'{"schema_version": 1,')
    )
    for _ in range(2):
        with AttemptLog(path) as log:
            assert len(log) == 25
            assert log.health.torn == 21
    assert "cut off by a crash" in caplog.text


@pytest.mark.usefixtures("remembering")
def test_readers_of_a_run_in_progress_do_not_verify_what_its_writer_wrote(path, monkeypatch):
    with AttemptLog(path, write=True, flush_every=4) as log:
        for number in range(10):
            log.append(attempt(number))
        must_not_be_called(monkeypatch, "is_derived_from")
        after_a_tick(path)
        for number in range(10, 14):
            with AttemptLog(path) as reader:
                assert len(reader) == number
            log.append(attempt(number))


@pytest.mark.usefixtures("remembering")
def test_a_file_system_with_coarse_times_proves_nothing_about_a_killed_writer(path, monkeypatch):
    monkeypatch.setattr(verified_logs.Stamp, "is_exact", False)
    in_killed_writer(path, map(attempt, range(COUNT)))
    assert not is_remembered(path)


@pytest.mark.usefixtures("remembering")
def test_an_index_that_was_made_again_is_of_its_log_and_not_verified(path, monkeypatch):
    make_missing(path)
    for _ in range(2):
        with AttemptLog(path) as log:
            assert len(log) == COUNT
        must_not_be_called(monkeypatch, "is_derived_from", "insert")
    shutil.copytree(path.parent, path.parent.with_name("copy"))
    monkeypatch.setattr(record_index, "is_derived_from", index_seal.is_derived_from)
    with AttemptLog(path.parent.with_name("copy") / path.name) as log:
        assert len(log) == COUNT  # verified, and not indexed again


def test_a_writer_makes_a_missing_index_beside_its_place(path):
    make_missing(path)
    write(path, [attempt(999)])
    with AttemptLog(path) as log:
        assert len(log) == COUNT + 1
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("write", [False, True])
def test_a_journal_of_a_killed_process_is_not_applied_to_the_next_index(path, write):
    make_missing(path)
    child = os.fork()
    if child == 0:
        index = sqlite3.connect(index_of(path))
        index.executescript("CREATE TABLE state (indexed); PRAGMA cache_size = 1; BEGIN;")
        index.executemany("INSERT INTO state VALUES (?)", ((str(n),) for n in range(9999)))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert index_of(path).with_name("attempts.jsonl.index-journal").stat().st_size
    for _ in range(2):
        with AttemptLog(path, write=write) as log:
            assert list(log) == [attempt(number) for number in range(COUNT)]


def test_a_log_without_an_index_on_a_read_only_disk_is_read(path, monkeypatch):
    make_missing(path)

    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(record_index, "_make_index", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with AttemptLog(path) as log:
        assert len(log) == COUNT


@pytest.mark.usefixtures("remembering")
def test_an_index_that_an_earlier_version_verified_is_verified_again(path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(verified_logs, "COLUMNS", "id, phase")
        write(path, map(attempt, range(COUNT)))
        verify(path)
        assert is_remembered(path)
    assert not is_remembered(path)


@pytest.mark.parametrize("settled", [0.0, 0.2])
@pytest.mark.usefixtures("remembering")
def test_what_a_writer_wrote_is_not_verified_again(path, settled, monkeypatch):
    monkeypatch.setattr(verified_logs, "WRITTEN", 0)
    monkeypatch.setattr(verified_logs, "SETTLED", settled)
    write(path, map(attempt, range(COUNT)))
    monkeypatch.setattr(record_index, "is_derived_from", None)  # must not be called
    with AttemptLog(path) as log:
        assert len(log) == COUNT
    with replacing_log(path) as log:
        log.append(attempt(0))
    with AttemptLog(path) as log:
        assert list(log) == [attempt(0)]
    write(path, [attempt(1)])
    with AttemptLog(path) as log:
        assert len(log) == 2


@pytest.mark.parametrize("reason", ["small", "other file", "longer", "edited", "unfinished"])
@pytest.mark.usefixtures("remembering")
def test_a_writer_remembers_only_what_it_wrote_itself(path, reason, monkeypatch):
    monkeypatch.setattr(verified_logs, "WRITTEN", 1 << 30 if reason == "small" else 0)
    log = AttemptLog(path, write=True)
    for number in range(COUNT):
        log.append(attempt(number))
    log.flush()
    after_a_tick(path)
    if reason == "other file":
        shutil.copy2(path, path.with_name("other"))
        path.with_name("other").replace(path)
    elif reason == "longer":
        with path.open("ab") as file:
            file.write(b"not by the writer\n")
    elif reason == "edited":
        with path.open("r+b") as file:
            file.write(path.read_bytes().replace(b"opening 1", b"opening 2", 1))
        log.append(attempt(COUNT))
    elif reason == "unfinished":
        monkeypatch.setattr(AttemptLog, "_index_waiting", lambda *a: None)
        log.append(attempt(COUNT))
    log.close()
    assert not is_remembered(path)


@pytest.mark.usefixtures("remembering")
def test_a_log_that_changed_while_its_writer_verified_it_is_not_remembered(path, monkeypatch):
    monkeypatch.setattr(verified_logs, "WRITTEN", 0)
    write(path, map(attempt, range(COUNT)))
    verified_logs._place(path).unlink(missing_ok=True)
    after_a_tick(path)

    def verified_then_edited(*given):
        found = index_seal.is_derived_from(*given)
        with path.open("r+b") as file:
            file.write(path.read_bytes().replace(b'"value": 0.1', b'"value": 0.3', 1))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(record_index, "is_derived_from", verified_then_edited)
        log = AttemptLog(path, write=True)
    log.append(attempt(COUNT))
    log.close()
    with AttemptLog(path) as log:
        expected = [Attempt.from_json(line) for line in path.read_bytes().splitlines()]
        assert list(log.rows()) == [each.row for each in expected]


def test_the_index_of_another_user_is_not_trusted(path, monkeypatch):
    """A user who has the code, and not the key, makes an index with false rows."""
    write(path, map(attempt, range(3)))
    index_of(path).unlink()
    monkeypatch.setattr(index_seal, "user_key", lambda: b"of somebody else")
    with monkeypatch.context() as false:
        row = Attempt.row.fget
        changed = property(lambda self: row(self)._replace(outcome=Outcome.SUCCESS))
        false.setattr(Attempt, "row", changed)
        with AttemptLog(path) as log:
            assert {each.outcome for each in log.rows()} == {Outcome.SUCCESS}
    monkeypatch.undo()
    with AttemptLog(path) as log:
        assert {each.outcome for each in log.rows()} == {Outcome.FAILURE}


@pytest.mark.usefixtures("remembering")
def test_an_unchanged_log_is_verified_once(path, monkeypatch):
    write(path, map(attempt, range(COUNT)))
    verify(path)
    monkeypatch.setattr(record_index, "is_derived_from", None)  # must not be called
    with AttemptLog(path) as log:
        assert len(log) == COUNT


@pytest.mark.parametrize("changed", ["copied", "moved over", "small", "recent", "logged ahead"])
@pytest.mark.usefixtures("remembering")
def test_a_log_is_verified_again_where_its_status_proves_nothing(path, changed, monkeypatch):
    write(path, map(attempt, range(COUNT)))
    verify(path)
    if changed == "copied":
        shutil.copytree(path.parent, path.parent.with_name("copy"))
        path = path.parent.with_name("copy") / path.name
    elif changed == "moved over":
        shutil.copy2(path, path.with_name("other"))
        path.with_name("other").replace(path)
    elif changed == "small":
        monkeypatch.setattr(verified_logs, "SMALLEST", 1 << 20)
    elif changed == "recent":
        monkeypatch.setattr(verified_logs, "SETTLED", 3600.0)
        monkeypatch.setattr(verified_logs, "SETTLED_IF_EXACT", 3600.0)
        os.utime(path)
        with AttemptLog(path):
            pass
    else:
        index_of(path).with_name(f"{index_of(path).name}-wal").write_bytes(b"x")
    calls = []
    derived = record_index.is_derived_from
    monkeypatch.setattr(record_index, "is_derived_from", lambda *a: calls.append(a) or derived(*a))
    with AttemptLog(path) as log:
        assert len(log) == COUNT
    assert calls


@pytest.mark.usefixtures("remembering")
def test_a_note_of_another_user_that_a_log_was_verified_is_not_believed(path, monkeypatch):
    write(path, map(attempt, range(COUNT)))
    monkeypatch.setattr(verified_logs, "user_key", lambda: b"of somebody else")
    verify(path)
    monkeypatch.setattr(verified_logs, "user_key", lambda: b"mine")
    assert not is_remembered(path)
    for note in ("", "\xff", "0" * 64, "0" * 10**6):
        verified_logs._place(path).write_text(note)
        with AttemptLog(path) as log:
            assert len(log) == COUNT


def test_an_index_of_ones_own_is_not_made_again(path, monkeypatch):
    """Attempts made twice, and lines that are no records, are accounted for."""
    write(path, [attempt(0), attempt(1), attempt(0, 0.9)])
    with path.open("ab") as file:
        file.write(b"no record\n")
    write(path, [attempt(2)])
    monkeypatch.setattr(record_index, "insert", None)  # must not be called
    with AttemptLog(path) as log:
        assert len(log) == 3
        assert log.health.unreadable == 1


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # of small batches
)
@given(st.lists(changed_lines().filter(lambda line: "\n" not in line), max_size=12))
@example([LINE.replace("-3.5", "-0.0")])  # SQLite has no negative zero
@example([LINE.replace("0.25", "-0.0"), LINE.replace('"utility": 1.0', '"utility": -0.0')])
def test_the_index_of_any_lines_has_what_they_say_and_is_verified(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attempts.jsonl"
        path.write_bytes(b"".join(line.encode("utf-8", "surrogatepass") + b"\n" for line in lines))
        expected, unreadable = {}, 0
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                made = Attempt.from_json(line)
            except SchemaTooNewError:
                assume(False)
            except ConfigurationError:
                unreadable += 1
            else:
                expected.pop(made.id, None)
                expected[made.id] = made
        with AttemptLog(path) as log:
            assert log.health.unreadable == unreadable
            assert list(log) == list(expected.values())
            assert list(log.rows()) == [each.row for each in expected.values()]
        with contextlib.closing(sqlite3.connect(index_of(path))) as index:
            assert index_seal.is_derived_from(path, index, record_index._schema())
