"""Files that a user names: pipes, devices and home folders."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
from tests.cli.running import astra_rl

from astra_rl.config.loading import load_config
from astra_rl.core.attack_files import read_attacks
from astra_rl.datasets.files import load_rows
from astra_rl.datasets.scenario_files import read_scenario_file
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.labels import read_labels
from astra_rl.evaluation.show.exports.preferences import SafeReplies
from astra_rl.evaluation.show.exports.regression import RegressionSuite
from astra_rl.infra import user_files
from astra_rl.infra.user_files import noting_files, read_user_file, read_user_text, user_path

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_files, "SILENCE", 0.05)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (load_rows, "prompts.txt"),
        (load_rows, "prompts.jsonl"),
        (read_scenario_file, "scenario.yaml"),
        (load_config, "config.yaml"),
        (read_attacks, "attacks.jsonl"),
        (SafeReplies.load, "replies.jsonl"),
        (RegressionSuite.load, "suite.json"),
        (read_labels, "labels.csv"),
    ],
)
@pytest.mark.parametrize("opened", [False, True], ids=["no writer", "a silent writer"])
def test_a_pipe_to_which_nobody_writes_is_given_up(
    tmp_path: Path, read: object, name: str, opened: bool
) -> None:
    os.mkfifo(tmp_path / name)
    writer = os.open(tmp_path / name, os.O_RDWR) if opened else None
    try:
        with pytest.raises(ConfigurationError, match="nothing was written to this pipe"):
            read(tmp_path / name)  # type: ignore[operator]
    finally:
        if writer is not None:
            os.close(writer)


def test_a_pipe_with_a_writer_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``--prompts <(head -n 2 prompts.txt)``."""
    monkeypatch.setattr(user_files, "SILENCE", 30)
    text = "hello\r\nthere\n" * 20_000  # more than a pipe holds
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(text.encode(),))
    writer.start()
    assert read_user_text(tmp_path / "pipe") == text.replace("\r\n", "\n")
    writer.join()


def test_a_device_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_files, "MOST_STREAMED_BYTES", 1_000_000)
    with pytest.raises(ConfigurationError, match="more than 1000000 bytes of a file"):
        load_rows("/dev/zero")
    assert read_user_file("/dev/null") == b""


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("hello\n")
    assert len(load_rows("~/prompts.txt").rows) == 1
    with pytest.raises(ConfigurationError, match=r"cannot expand '~no-such-user/x'"):
        user_path("~no-such-user/x")


def test_files_are_noted_inside_the_block_only(tmp_path: Path) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    first.write_text("hello")
    last.write_text("more")
    with noting_files() as outer:
        assert read_user_text(first) == "hello"
        with noting_files() as inner:
            read_user_text(last)
        with pytest.raises(OSError, match="missing"):
            read_user_file(tmp_path / "missing")
    read_user_text(last)
    assert outer == {str(first): hashlib.sha256(b"hello").hexdigest()}
    assert inner == {str(last): hashlib.sha256(b"more").hexdigest()}


def test_a_shell_that_does_not_expand_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``--output=~/x`` and ``'~/x'``."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert astra_rl("init", "~/config.yaml", cwd=tmp_path).returncode == 0
    assert [each.name for each in home.iterdir()] == ["config.yaml"]
    assert not (tmp_path / "~").exists()
