"""The tables of a hardening, from attempts made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from astra_rl.evaluation.measures.hardening import hardening_of
from astra_rl.evaluation.show.report.hardening import render_hardening
from astra_rl.evaluation.stats.intervals import Interval
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.zero_sum import exploitability, exploitability_interval


def rows(attempt: Any, scores: list[float | None], attacker: str, target: str) -> list[Any]:
    return [
        attempt(score, opening=f"prompt {n}", attacker=attacker, target=target).row
        for n, score in enumerate(scores)
    ]


@pytest.fixture
def found(attempt: Any) -> Any:
    scores = {
        ("attacker 0", "target 0"): [1.0, 1.0, 1.0, 0.0],
        ("attacker 0", "target 1"): [0.0, 0.0, 1.0, 0.0],
        ("attacker 1", "target 0"): [0.0, 0.0, 1.0, 1.0],
        ("attacker 1", "target 1"): [1.0, None, 0.0, 0.0],
    }
    return hardening_of(
        {pair: rows(attempt, each, *pair) for pair, each in scores.items()},
        {
            "target 0": rows(attempt, [0.0, 0.0, 0.0, 0.0], "benign", "target 0"),
            "target 1": rows(attempt, [0.0, 1.0, 0.0, 0.0], "benign", "target 1"),
        },
    )


def test_changes_are_paired_with_the_first_target(found: Any) -> None:
    assert found.attack_changes["attacker 0", "target 1"].difference == pytest.approx(-0.5)
    assert found.attack_changes["attacker 0", "target 1"].counts.only_b == 2
    assert found.refusal_changes["target 1"].difference == pytest.approx(0.25)
    assert set(found.attack_changes) == {("attacker 0", "target 1"), ("attacker 1", "target 1")}


def test_an_unknown_outcome_is_in_no_rate_and_in_the_bounds(found: Any) -> None:
    rate = found.matrix.rates["attacker 1", "target 1"]
    assert (rate.successes, rate.trials, rate.unscored) == (1, 3, 1)
    cell = found.as_dict()["attacks"][3]
    assert (cell["lowest"], cell["highest"]) == (0.25, 0.5)
    assert cell["change"]["unscored"] == 1


def test_the_page_has_a_cell_per_pair_and_says_what_is_unknown(found: Any) -> None:
    page = render_hardening(found, title="<b>", note="none & found", runs={})
    assert page.count('class="heat"') == 6
    assert "1 of 3, 1 unknown" in page
    assert "\N{MINUS SIGN}50 points" in page
    assert "&lt;b&gt;" in page
    assert "none &amp; found" in page


GAME = ((1.0, 0.0), (0.0, 0.5))
"""Success by attack (rows) and defence; at the equilibrium both sides mix 1 to 2, for 1/3."""


def mixtures(rounds: int, *, memory: bool) -> float:
    """Exploitability in `GAME` of all players of alternating best responses.

    A new player responds to all earlier opponents if it has a memory, else to the latest.
    """
    attacks, defences = [0], [0]
    for _ in range(rounds):
        met = attacks if memory else attacks[-1:]
        defences.append(min((0, 1), key=lambda d: sum(GAME[a][d] for a in met)))
        met = defences if memory else defences[-1:]
        attacks.append(max((0, 1), key=lambda a: sum(GAME[a][d] for d in met)))
    x = [attacks.count(each) / len(attacks) for each in (0, 1)]
    y = [defences.count(each) / len(defences) for each in (0, 1)]
    best_attack = max(sum(GAME[a][d] * y[d] for d in (0, 1)) for a in (0, 1))
    best_defence = min(sum(GAME[a][d] * x[a] for a in (0, 1)) for d in (0, 1))
    return best_attack - best_defence


@pytest.mark.slow
def test_responses_to_all_earlier_opponents_reach_an_equilibrium_and_to_the_latest_do_not() -> None:
    assert mixtures(3000, memory=True) <= 0.02
    assert mixtures(3000, memory=False) > 0.2


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        # Players in the shares of the equilibrium of `GAME`: 1 to 2 on both sides.
        (((1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.0, 0.5, 0.5)), 0.0),
        (GAME, 0.5 - 0.25),
        (((0.3,),), 0.0),
        (((0.3, math.nan),), math.nan),
    ],
)
def test_the_exploitability_of_mixtures(rates: Sequence[Sequence[float]], expected: float) -> None:
    assert exploitability(rates) == pytest.approx(expected, nan_ok=True)


def test_the_exploitability_of_a_hardening_is_that_of_its_rates(found: Any) -> None:
    # attacker 0 has 0.75 and 0.25, attacker 1 has 0.5 and 1/3
    assert found.as_dict()["exploitability"] == pytest.approx(0.5 - (0.25 + 1 / 3) / 2)


@pytest.mark.parametrize(("players", "conversations"), [(2, 128), (4, 20)])
def test_equal_attackers_and_targets_seem_exploitable_and_the_interval_has_zero(
    players: int, conversations: int
) -> None:
    """The truth is 0 and the estimate is never below it; so only an interval can say so."""
    rng = np.random.default_rng(0)
    found, covered = [], 0
    for _ in range(40):
        won = rng.binomial(conversations, 0.5, (players, players))
        found.append(exploitability((won / conversations).tolist()))
        confidence = 1 - 0.05 / players**2
        ends = [[Rate(int(n), conversations).covering(confidence) for n in row] for row in won]
        low, high = exploitability_interval(ends)
        assert low <= found[-1] <= high
        covered += low == 0
    assert np.mean(found) > 0.02
    assert covered >= 38


def test_the_interval_of_the_exploitability_is_that_of_all_games_in_the_box() -> None:
    """All corners of the box, enumerated."""
    box = [[(0.1, 0.3), (0.5, 0.6)], [(0.2, 0.9), (0.0, 0.4)]]
    corners = [
        exploitability([values[:2], values[2:]])
        for values in product(*(ends for row in box for ends in row))
    ]
    low, high = exploitability_interval([[Interval(*ends) for ends in row] for row in box])
    assert low <= min(corners)
    assert high >= max(corners)


def test_the_equilibrium_of_a_hardening_is_in_its_json_and_on_its_page(found: Any) -> None:
    # target 1 is better against both attackers, and against it attacker 1 is better
    low, high = found.equilibrium_interval
    assert low < 1 / 3 < high
    assert found.as_dict()["equilibrium"] == {
        "value": pytest.approx(1 / 3),
        "low": low,
        "high": high,
        "attackers": {"attacker 0": 0.0, "attacker 1": 1.0},
        "targets": {"target 0": 0.0, "target 1": 1.0},
    }
    page = render_hardening(found, title="", note=None, runs={})
    assert "Exploitability of the uniform mixtures: 0.21" in page
    assert "succeed at a rate of 33%" in page


def test_a_table_with_an_unknown_rate_has_no_equilibrium(attempt: Any) -> None:
    found = hardening_of(
        {("attacker 0", "target 0"): rows(attempt, [None], "attacker 0", "target 0")},
        {"target 0": rows(attempt, [0.0], "benign", "target 0")},
    )
    assert found.as_dict()["equilibrium"] is None
    assert "has no equilibrium" in render_hardening(found, title="", note=None, runs={})
