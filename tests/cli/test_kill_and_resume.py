"""A run of every family that is killed at some moment goes on to the bit.

The benchmark of the same name kills each family at 50 moments; here are a few.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_family_that_is_killed_goes_on_to_the_bit(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "kill_and_resume.py"),
            *("--moments", "2", "--output", str(out)),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    results = json.loads(out.read_text())
    assert len(results) == 9
    assert all(result["different"] == [] for result in results.values())
    assert sum(result["killed"] for result in results.values()) > 9
