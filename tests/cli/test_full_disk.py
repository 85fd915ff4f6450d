"""A disk that is full, or becomes read-only, in the middle of a run: a real one, in memory.

The benchmark of the same name does this at more moments and for every family.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "full_disk.py"
MOUNTING = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture
def mounts(tmp_path: Path) -> None:
    """Skip where nothing can be mounted."""
    try:
        tried = subprocess.run(
            [*MOUNTING, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here: this needs Linux")
    if tried.returncode:
        pytest.skip(f"nothing can be mounted here: {tried.stderr.strip()}")


def run_on_full_disk(tmp_path: Path, *options: str) -> dict[str, Any]:
    out = tmp_path / "result.json"
    done = subprocess.run(
        # In a namespace from the start, where the benchmark would begin again after its imports.
        [*MOUNTING, sys.executable, str(BENCHMARK), "--mounting", "--output", str(out), *options],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.is_file(), done.stdout + done.stderr[-2000:]
    results: dict[str, Any] = json.loads(out.read_text())
    assert [result["wrong"] for result in results.values()] == [[]] * len(results)
    assert done.returncode == 0
    return results


@pytest.mark.exhaustive
@pytest.mark.usefixtures("mounts")
def test_a_full_disk_is_one_error_loses_nothing_and_the_same_command_goes_on_to_the_bit(
    tmp_path: Path,
) -> None:
    results = run_on_full_disk(tmp_path, "--moments", "1", "--family", "balance with replay")
    assert results["balance with replay"]["ended"] >= 2


@pytest.mark.exhaustive
@pytest.mark.usefixtures("mounts")
def test_another_family_goes_on_after_the_disk_was_full(tmp_path: Path) -> None:
    family = "PPO with a value head"
    results = run_on_full_disk(tmp_path, "--moments", "1", "--seed", "1", "--family", family)
    assert results[family]["ended"] >= 2
