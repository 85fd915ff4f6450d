"""The tables of a hardening, from attempts made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from astra_rl.evaluation.measures.hardening import hardening_of
from astra_rl.evaluation.show.report.hardening import render_hardening
from astra_rl.evaluation.stats.zero_sum import exploitability


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


def test_the_equilibrium_of_a_hardening_is_in_its_json_and_on_its_page(found: Any) -> None:
    # target 1 is better against both attackers, and against it attacker 1 is better
    assert found.as_dict()["equilibrium"] == {
        "value": pytest.approx(1 / 3),
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
