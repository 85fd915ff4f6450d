"""A run of every family that is killed at some moment goes on to the bit.

The benchmark of the same name kills each family at 50 moments; here are a few.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


# Killed early and late, and at calls that change the disk. test_resume.py kills PPO and a balance
# algorithm as well, from outside.
SOME = ["policy gradient", "constraints"]


@pytest.mark.slow
def test_a_family_that_is_killed_goes_on_to_the_bit(tmp_path: Path) -> None:
    results = killed(tmp_path, *SOME)
    assert len(results) == len(SOME)
    assert sum(result["killed"] for result in results.values()) > len(SOME)


@pytest.mark.exhaustive
def test_every_family_that_is_killed_goes_on_to_the_bit(tmp_path: Path) -> None:
    results = killed(tmp_path)
    assert len(results) == 9
    assert sum(result["killed"] for result in results.values()) > 9


def killed(tmp_path: Path, *families: str) -> dict[str, Any]:
    """Kill a run of each of these families (none given: of all) at two moments."""
    out = tmp_path / "result.json"
    chosen = [option for family in families for option in ("--family", family)]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "kill_and_resume.py"),
            *("--moments", "2", "--output", str(out)),
            *chosen,
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    results: dict[str, Any] = json.loads(out.read_text())
    assert all(result["different"] == [] for result in results.values())
    return results
