"""A run of every family that is killed at some moment goes on to the bit.

The benchmark of the same name kills each family at 50 moments; here are a few.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


GROUPS = {  # so that workers share them
    "on policy": ("policy gradient", "running baseline", "PPO with a value head"),
    "pairs and constraints": ("constraints", "preference", "KTO"),
    "replay and imitation": (
        "balance with a learned log Z",
        "balance with replay",
        "imitation",
    ),
}


def test_every_family_is_in_a_group() -> None:
    source = (ROOT / "benchmarks" / "kill_and_resume.py").read_text("utf-8")
    families = re.search(r"^FAMILIES.*?= (\{.*?^\})", source, re.MULTILINE | re.DOTALL)
    assert families is not None
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(
        ast.literal_eval(families[1])
    )


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_family_that_is_killed_goes_on_to_the_bit(tmp_path: Path, group: str) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "kill_and_resume.py"),
            *("--moments", "2", "--output", str(out)),
            *(f"--family={name}" for name in GROUPS[group]),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    results = json.loads(out.read_text())
    assert set(results) == set(GROUPS[group])
    assert all(result["different"] == [] for result in results.values())
    # How many of the six runs end before their kill depends on the speed of the machine.
    assert sum(result["killed"] for result in results.values()) >= 2
