"""Pieces of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from astra_rl.errors import ConfigurationError
from astra_rl.runs.folder import RunFolder, new_run_folder, open_run_folder
from astra_rl.runs.provenance import versions


def test_new_run_folders_never_collide_and_never_leave_their_parent(tmp_path: Path) -> None:
    names = ["demo", "demo", "../../etc", "", "a/b", "\x1b[31m" + "x" * 300]
    folders = [new_run_folder(tmp_path, name).path for name in names]
    assert len(set(folders)) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not the folder of a run"):
        open_run_folder(tmp_path)


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="cannot make the run folder"):
        RunFolder(tmp_path / "file" / "run")


def test_lines_hold_one_record_each_whatever_a_model_wrote(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rows = [{"attack": "a\u2028b\nc\r\x00\ud800"}, {"attack": "d"}]
    folder.write_lines(folder.failures, rows)
    read = [json.loads(line) for line in folder.failures.read_text("utf-8").splitlines()]
    assert read == [{"attack": "a\u2028b\nc\r\x00\ufffd"}, {"attack": "d"}]


def test_versions_name_what_a_result_depends_on() -> None:
    assert {"python", "torch", "transformers", "astra-rl"} <= set(versions())
