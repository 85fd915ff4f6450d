"""The tables of a hardening, from attempts made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from astra_rl.evaluation.measures.hardening import hardening_of
from astra_rl.evaluation.show.report.hardening import render_hardening


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
