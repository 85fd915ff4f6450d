"""A run on local models asks nothing of any network; and the tests would notice if it did."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
import yaml
from tests.cli.running import astra_rl
from tests.tiny_models import save_tiny_models

COMMANDS = [
    ["train", "config.yaml", "-o", "run"],
    ["evaluate", "run", "--attacks", "untrained"],
    ["score", "run", "-m", "refusal"],
    ["replay", "run"],
    ["export", "run", "--format", "sarif"],
]
RUN_ALL = """
import json, sys
from astra_rl.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["astra-rl", *command]
    try:
        main.run()
    except SystemExit as stop:
        if stop.code:
            raise
"""


def child(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80)])
def test_the_tests_cannot_leave_this_machine(
    address: tuple[str, int], blocked_network: Path
) -> None:
    with pytest.raises(OSError, match="the tests run without a network"):
        socket.create_connection(address, timeout=1)
    with pytest.raises(OSError, match="the tests run without a network"):
        urllib.request.urlopen("http://example.invalid/", timeout=1)
    assert len(blocked_network.read_text().splitlines()) == 2
    blocked_network.write_text("")


def test_nor_can_the_processes_that_they_start(blocked_network: Path) -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = child(code)
    assert "NetworkBlockedError" in done.stderr
    assert "192.0.2.1" in blocked_network.read_text()
    blocked_network.write_text("")


def test_this_machine_itself_can_be_reached() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=60),
    ):
        pass


def test_the_log_of_a_killed_process_is_removed_and_that_of_a_running_one_is_kept(
    pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path(__file__).with_name("conftest.py"))
    (conftest,) = (
        each
        for each in pytestconfig.pluginmanager.get_plugins()
        if getattr(each, "__file__", None) == here
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    ended.wait()
    for number in (ended.pid, os.getpid()):
        (tmp_path / f"{conftest.LOGS}{number}-abc").touch()
    (tmp_path / f"{conftest.LOGS}something-else").touch()
    conftest._remove_logs_of_killed_processes()
    left = {each.name.removeprefix(conftest.LOGS) for each in tmp_path.iterdir()}
    assert left == {f"{os.getpid()}-abc", "something-else"}


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A folder with local models and a configuration."""
    save_tiny_models(tmp_path, attacker=0, target=1)
    config = {
        "attacker": {"model": "attacker", "max_new_tokens": 6, "lora": {"rank": 2}},
        "target": {"model": "target", "max_new_tokens": 6},
        "moderator": {"type": "secret_leak"},
        "prompts": {"scenario": "planted_secrets", "train": 4, "test": 4},
        "training": {"steps": 1, "episodes_per_step": 2, "batch_size": 4},
        "dtype": "float32",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.slow
def test_a_whole_run_on_local_models_asks_no_network_for_anything(configured: Path) -> None:
    """Offline by its own doing: nothing says that there is no network."""
    for command in COMMANDS:
        done = astra_rl(*command, cwd=configured, offline=False)
        assert done.returncode == 0, done.stderr
    assert (configured / "run" / "report.html").is_file()


@pytest.mark.exhaustive  # the start of Python takes longer than the run
def test_nor_does_a_process_without_variables_and_without_any_cache(configured: Path) -> None:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment["HF_HOME"] = str(configured / "empty")
    done = child(RUN_ALL, json.dumps(COMMANDS), cwd=configured, env=environment)
    assert done.returncode == 0, done.stderr
    assert (configured / "run" / "report.html").is_file()
    assert not (configured / "empty" / "hub").exists()
