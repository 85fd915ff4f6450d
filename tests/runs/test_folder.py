"""No name and no link leads out of the folder of a run."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.hostile import HOSTILE

from astra_rl.errors import ConfigurationError
from astra_rl.runs.folder import RunFolder, file_stem, new_run_folder, open_run_folder

NAMES = st.text(st.characters(exclude_categories=()), max_size=80) | st.sampled_from(HOSTILE)
RESERVED = {"con", "prn", "aux", "nul", *(f"{n}{i}" for n in ("com", "lpt") for i in range(10))}


@given(NAMES)
@example("..")
@example("../../etc/passwd")
@example("/etc/passwd")
@example("C:\\windows")
@example("a\0b")
@example("nul")
@example("COM1")
@example("~root")
def test_any_name_becomes_one_plain_part_of_a_file_name(name: str) -> None:
    stem = file_stem(name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,60}", stem)
    assert stem.lower() not in RESERVED
    assert file_stem(name) == stem


@given(NAMES, NAMES)
@example("a/b", "a-b")
@example("", "..")
@example("x" * 61, "x" * 62)
def test_two_names_never_become_one(one: str, other: str) -> None:
    assert (file_stem(one) == file_stem(other)) == (one == other)


def test_an_ordinary_name_stays_as_it_is() -> None:
    assert file_stem("after_KeywordModerator") == "after_KeywordModerator"


@pytest.mark.parametrize(
    "name", ["..", "../up", "/etc/passwd", "a\0b", "C:\\x", "con", "x" * 500, ""]
)
def test_files_of_a_run_are_in_its_folder_whatever_they_are_named(
    tmp_path: Path, name: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    for path in (folder.attempts_of(name), folder.evaluation(name)):
        assert path.parent == folder.path
        path.write_text("x")  # and the name is one that a file can have
    made = new_run_folder(tmp_path / "runs", name)
    assert made.path.parent == tmp_path / "runs"


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "a\0b"):
        with pytest.raises(ConfigurationError, match="cannot make the run folder"):
            RunFolder(path)


LINKS = [
    "attempts.jsonl",
    "attempts.jsonl.lock",
    "attempts.jsonl.index",
    "metrics.jsonl",
    "report.html",
    "checkpoints",
    "states",
    "transfer/x",
    "deep/er/still",
]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("target", ["outside", "missing", "../outside", "/etc/hostname"])
def test_a_planted_link_that_leads_out_is_refused(tmp_path: Path, name: str, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / target if target in ("outside", "missing") else target)
    if target == "../outside" and link.resolve().is_relative_to(tmp_path / "run"):
        RunFolder(tmp_path / "run")
        return
    with pytest.raises(ConfigurationError, match="is a link out of the run folder"):
        RunFolder(tmp_path / "run")
    assert list(outside.iterdir()) == []


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigurationError, match="special file"):
        RunFolder(tmp_path)


def test_the_folder_itself_may_be_a_link_and_links_inside_may_stay(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "step-1").mkdir()
    (tmp_path / "disk" / "last").symlink_to("step-1")
    assert RunFolder(tmp_path / "run").path == tmp_path / "run"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_fifo, r"config\.yaml is a named pipe \(FIFO\)"),
        (_socket, r"config\.yaml is a socket"),
        (Path.mkdir, r"config\.yaml is a folder"),
        (lambda path: path.symlink_to("elsewhere"), r"config\.yaml is a link to nothing"),
        (lambda path: path.symlink_to(path), r"config\.yaml is not readable"),
        (lambda path: None, r"it has no config\.yaml"),
    ],
    ids=["fifo", "socket", "folder", "dangling link", "link to itself", "nothing"],
)
def test_what_stands_in_the_place_of_the_configuration_is_named(
    make: Callable[[Path], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a FIFO would wait forever."""
    monkeypatch.chdir(tmp_path)  # the path of a socket is at most 107 bytes
    make(Path("config.yaml"))
    with pytest.raises(ConfigurationError, match=said):
        open_run_folder(tmp_path)
