import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import astra_rl
from astra_rl.core.text import Conversation
from astra_rl.infra.jsonio import (
    MAX_DEPTH,
    atomic_file,
    json_line,
    jsonable,
    parse_json,
    parse_own_json,
    parse_reply_json,
    write_atomic,
    write_json,
)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    write_json({"a": math.nan, "b": [math.inf, 1.0]}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.0]}


def test_subclasses_of_json_types_are_written_as_those(tmp_path):
    value = {"text": Conversation("Hi", turns=["!"]), "number": np.float64(0.5), "flag": True}
    assert json.loads(json_line(value)) == {"text": "Hi!", "number": 0.5, "flag": True}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomic(path, "old")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_parent_folders_are_made(tmp_path):
    write_json([], tmp_path / "a" / "b.json")
    assert (tmp_path / "a" / "b.json").read_text() == "[]\n"


texts = st.text(st.characters())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=10,
)


@given(values)
def test_whatever_is_written_is_one_line_of_strict_json(value):
    line = json_line(value)
    assert len(line.splitlines()) == 1
    assert json.loads(line, parse_constant=pytest.fail) == json.loads(json.dumps(jsonable(value)))


def test_numbers_of_numpy_are_numbers():
    value = {"mean": np.float32(0.5), "count": np.int64(3), "none": np.float32("nan")}
    assert jsonable(value) == {"mean": 0.5, "count": 3, "none": None}


def test_no_text_is_too_odd_for_a_file(tmp_path):
    write_json({"\ud800": ["\udfff", Path("\udc80")]}, tmp_path / "x.json")
    odd = "\N{REPLACEMENT CHARACTER}"
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {odd: [odd, odd]}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5_000, "9" * 301, "", b"\xff"]
)
@pytest.mark.parametrize("read", [parse_json, parse_own_json])
def test_json_that_breaks_a_plain_reader_is_a_value_error(read, text):
    with pytest.raises(ValueError):  # noqa: PT011 - each has another message
        read(text)


@pytest.mark.parametrize("text", ["NaN", '[1, {"a": -Infinity}]', "Infinity"])
def test_numbers_that_json_does_not_know_are_read_of_others_and_not_of_our_own_files(text):
    assert not math.isfinite(next(iter(_numbers_of(parse_json(text)))))
    with pytest.raises(ValueError, match="is not a JSON number"):
        parse_own_json(text)


def _numbers_of(value):
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [number for each in below for number in _numbers_of(each)]
    return [*found, value] if isinstance(value, float) else found


@given(values)
def test_what_is_written_is_read_as_it_was(value):
    assert parse_own_json(json_line(value)) == parse_json(json_line(value)) == jsonable(value)


def test_all_json_of_others_is_read_by_one_reader():
    """But that of a state, which has checksums, and what processes of one training exchange."""
    source = Path(astra_rl.__file__).parent
    own = ("training/states.py", "distributed/ranks.py", "distributed/environment.py")
    apart = {source / "infra" / "jsonio.py", *(source / each for each in own)}
    found = [
        path.relative_to(source)
        for path in source.rglob("*.py")
        if path not in apart and re.search(r"json\.loads?\(", path.read_text("utf-8"))
    ]
    assert found == []


def test_what_a_killed_process_left_is_removed_and_what_others_write_stays(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = tmp_path / f".a.json.{process.pid}.tmp"
    alive = tmp_path / f".a.json.{os.getppid()}.tmp"
    other = tmp_path / f".b.json.{process.pid}.tmp"
    for path in (dead, alive, other):
        path.write_text("half")
    write_json({}, tmp_path / "a.json")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", alive.name, other.name}


@pytest.mark.parametrize("form", ["[{}]", '{{"a": {}}}'])
def test_values_that_are_nested_too_deeply_are_refused(form):
    """So that no reader meets the limit of Python's recursion in what it does with a value."""
    text = "0"
    for _ in range(MAX_DEPTH):
        text = form.format(text)
    assert parse_json(text) == json.loads(text)
    for read in (parse_json, parse_own_json, parse_reply_json):
        for encoded in (form.format(text), form.format(text).encode(), "[" * 900 + "]" * 900):
            with pytest.raises(ValueError, match="nested too deeply"):
                read(encoded)
    assert len(parse_json("[" + "[]," * 1000 + "[]]")) == 1001


def test_a_file_that_was_written_can_be_closed_again(tmp_path):
    """Python closes it when it is collected, and from 3.13 on prints what that raises."""
    with atomic_file(tmp_path / "f") as file:
        file.write("x")
    file.close()
    assert (tmp_path / "f").read_text() == "x"
