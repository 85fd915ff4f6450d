"""The real launchers: torchrun and accelerate."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.running import astra_rl
from tests.distributed.test_runs import SHARDED, results

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

ROOT = str(Path(__file__).parents[2])
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
ACCELERATE = (
    *("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"),
)


@pytest.fixture(autouse=True)
def own_name_only(blocked_network: Path) -> Iterator[None]:
    """Allow torchrun to look up the name of this machine, and nothing else."""
    yield
    tried = blocked_network.read_text("utf-8").splitlines()
    assert set(tried) <= {f"socket.gethostbyaddr {socket.gethostname()!r}"}
    blocked_network.write_text("", "utf-8")


def launched(
    launcher: tuple[str, ...], output: Path, cwd: Path, *options: str
) -> subprocess.Popen[str]:
    path = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
    arguments = ["astra_rl", "train", "config.yaml", "-o", str(output), *options]
    command = [sys.executable, "-m", *launcher, *arguments]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_a_launcher_starts_a_run(
    launcher: tuple[str, ...], workplace: Path, tmp_path: Path
) -> None:
    done = astra_rl("train", "config.yaml", "-o", str(tmp_path / "alone"), cwd=workplace)
    assert done.returncode == 0, done.stderr
    process = launched(launcher, tmp_path / "run", workplace)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert results(tmp_path / "run") == results(tmp_path / "alone")


def test_torchrun_starts_a_run_with_shards(workplace: Path, tmp_path: Path) -> None:
    process = launched(TORCHRUN, tmp_path / "run", workplace, *SHARDED)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert len(results(tmp_path / "run")["metrics"]) == 4


def test_ending_torchrun_saves_the_step_and_names_the_command(
    workplace: Path, tmp_path: Path
) -> None:
    process = launched(TORCHRUN, tmp_path / "run", workplace)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert "everything is saved. Continue with: astra-rl resume" in errors
