import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from astra_rl.infra.checkpointing import replace_folder


def write(folder, text):
    with replace_folder(folder) as temporary:
        (temporary / "file").write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_made_with_its_parents(tmp_path):
    write(tmp_path / "a" / "b", "new")
    assert contents(tmp_path / "a" / "b") == {"file": "new"}


def test_a_folder_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "stale").write_text("old")
    write(tmp_path / "best", "new")
    assert contents(tmp_path / "best") == {"file": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_while_the_new_one_is_written_the_old_one_is_whole(tmp_path):
    write(tmp_path / "best", "old")
    with replace_folder(tmp_path / "best") as temporary:
        (temporary / "file").write_text("half")
        assert contents(tmp_path / "best") == {"file": "old"}


def write_half(folder):
    with replace_folder(folder) as temporary:
        (temporary / "file").write_text("half")
        raise RuntimeError("interrupted")


def test_an_error_while_writing_leaves_the_old_one(tmp_path):
    write(tmp_path / "best", "old")
    with pytest.raises(RuntimeError, match="interrupted"):
        write_half(tmp_path / "best")
    assert contents(tmp_path / "best") == {"file": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_error_while_taking_its_place_brings_the_old_one_back(tmp_path, monkeypatch):
    write(tmp_path / "best", "old")
    rename = Path.rename

    def fail_for_the_new_one(self, target):
        if not self.name.endswith(".old") and self.name.startswith(".best-"):
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="disk gone"):
        write(tmp_path / "best", "new")
    assert contents(tmp_path / "best") == {"file": "old"}


def test_others_may_read_it_as_far_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        write(tmp_path / "best", "new")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "best").stat().st_mode) == 0o755


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_that_the_umask_gives(tmp_path, umask):
    """safetensors makes private files."""
    before = os.umask(umask)
    try:
        with replace_folder(tmp_path / "a") as folder:
            (folder / "inner").mkdir()
            save_file({"w": torch.zeros(1)}, folder / "inner" / "w.safetensors")
            (folder / "private").touch(0o600)
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    expected = (tmp_path / "plain").stat().st_mode
    for name in ("inner/w.safetensors", "private"):
        assert (tmp_path / "a" / name).stat().st_mode == expected
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o777 & ~umask
