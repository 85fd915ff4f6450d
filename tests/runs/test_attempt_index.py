"""The index of a record: who reads never holds up who writes, and misses nothing."""

import contextlib
import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.runs.test_attempt_log import attempt, write

import astra_rl.runs.attempt_index as record_index
from astra_rl.runs.attempt_log import AttemptLog

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
