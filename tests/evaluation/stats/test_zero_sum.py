"""Equilibria of matrix games, against games with known solutions and enumerated best responses."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from astra_rl.errors import ContractError
from astra_rl.evaluation.stats.zero_sum import equilibrium, exploitability

PENNIES = ((1.0, 0.0), (0.0, 1.0))
CYCLE = ((0.5, 0.0, 1.0), (1.0, 0.5, 0.0), (0.0, 1.0, 0.5))
"""Rock, paper, scissors."""


@pytest.mark.parametrize(
    ("game", "attackers", "targets", "value"),
    [
        (PENNIES, (1 / 2, 1 / 2), (1 / 2, 1 / 2), 1 / 2),
        (CYCLE, (1 / 3,) * 3, (1 / 3,) * 3, 1 / 2),
        (((1.0, 0.0), (0.0, 0.5)), (1 / 3, 2 / 3), (1 / 3, 2 / 3), 1 / 3),
        (((0.9, 0.2), (0.4, 0.1)), (1, 0), (0, 1), 0.2),  # both sides have a dominant strategy
        (((0.3,),), (1,), (1,), 0.3),
    ],
)
def test_games_with_one_known_equilibrium(
    game: tuple[tuple[float, ...], ...],
    attackers: tuple[float, ...],
    targets: tuple[float, ...],
    value: float,
) -> None:
    found = equilibrium(game)
    assert found.attackers == pytest.approx(attackers, abs=1e-6)
    assert found.targets == pytest.approx(targets, abs=1e-6)
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize("shape", [(1, 4), (3, 2), (4, 4), (5, 7)])
def test_no_pure_strategy_gains_against_the_equilibrium_of_a_random_game(
    shape: tuple[int, int],
) -> None:
    game = np.random.default_rng(0).random(shape)
    found = equilibrium(game.tolist())
    for row, column in product(range(shape[0]), range(shape[1])):
        assert game[row] @ found.targets <= found.value + 1e-5
        assert found.attackers @ game[:, column] >= found.value - 1e-5
    assert sum(found.attackers) == pytest.approx(1)
    assert exploitability(game.tolist(), found.attackers, found.targets) < 1e-5


def test_the_weights_of_mixtures_enter_the_exploitability() -> None:
    # Against "always the first column" the first row wins always; the first row alone loses 1/2.
    assert exploitability(PENNIES, (1, 0), (1, 0)) == 1.0
    assert exploitability(PENNIES, (1, 0), (0.5, 0.5)) == 0.5
    assert exploitability(PENNIES, (0.5, 0.5), (0.5, 0.5)) == 0.0


def test_a_game_with_an_unknown_rate_has_no_equilibrium() -> None:
    with pytest.raises(ContractError, match="unknown success rate"):
        equilibrium(((0.5, math.nan),))
