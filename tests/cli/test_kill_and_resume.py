"""A run of every family that is killed at some moment goes on to the bit.

The benchmark of the same name kills each family at 50 moments; here are two, one of them at a call
that changes the disk. test_resume.py kills PPO from outside, late.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.kill_and_resume import FAMILIES, check_family, prepare
from tests.cli.processes import Forked

pytestmark = pytest.mark.slow

SOME = ("constraints",)


def kill(family: str) -> None:
    """Kill a run of this family at two moments, and write what came of it."""
    here = Path.cwd()
    prepare(here)
    result = check_family(family, here, moments=2, seed=0)
    (here / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in SOME else pytest.mark.exhaustive)
        for family in FAMILIES
    ],
)
def test_a_family_that_is_killed_goes_on_to_the_bit(family: str, tmp_path: Path) -> None:
    code, errors = Forked(kill, family, cwd=tmp_path).wait()
    assert code == 0, errors
    result = json.loads((tmp_path / "result.json").read_text())
    assert sum(result["killed_while"].values()) == 2
    assert result["different"] == []
