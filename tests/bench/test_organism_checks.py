"""Checks of organisms: what each refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest

from astra_rl.bench.organism_checks import Checks

GOOD = Checks(1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        ("triggers", 0.8),
        ("held_out", 0.4),
        ("held_out_mean", 0.8),
        ("false_triggers", 0.02),
        ("worst_near_miss", 0.3),
        ("shuffled", 0.1),
        ("tempered", 0.1),
        ("triggers", math.nan),
    ],
)
def test_each_check_can_refuse_an_organism(check, value):
    assert GOOD.failed() == []
    (line,) = dataclasses.replace(GOOD, **{check: value}).failed()
    assert line.startswith(f"{check} is {value:.3f}; it must be from ")
