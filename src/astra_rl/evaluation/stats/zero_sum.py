"""Zero-sum matrix games between attackers and targets: equilibria and exploitability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from astra_rl.errors import ContractError, require
from astra_rl.evaluation.stats.intervals import Interval

EXTRA = "harden"
"""Extra of this distribution that installs SciPy."""
DECIMALS = 6
"""Decimals of the weights of a mixture; smaller ones are rounding errors of the solver."""


class Equilibrium(NamedTuple):
    """Equilibrium in mixed strategies.

    Attributes:
        attackers: Weight of each attacker, in [0, 1]; they add up to 1.
        targets: Weight of each target, the same.
        value: Success rate when both are drawn by these weights.
    """

    attackers: tuple[float, ...]
    targets: tuple[float, ...]
    value: float


def equilibrium(rates: Sequence[Sequence[float]]) -> Equilibrium:
    """Return an equilibrium of the game in which attackers maximise and targets minimise the rate.

    It is the solution of a linear program for each side (von Neumann 1928). If there are several,
    the same rates give the same one.

    Args:
        rates: Success rate by attacker (rows) and target (columns), not empty.

    Raises:
        ContractError: A rate is not finite.
        MissingDependencyError: SciPy is not installed.
    """
    game = np.asarray(rates, dtype=np.float64)
    if not np.isfinite(game).all():
        raise ContractError("a game with an unknown success rate has no equilibrium.")
    attackers, value = _maximin(game)
    targets, _ = _maximin(-game.T)
    return Equilibrium(attackers, targets, value)


def _maximin(payoffs: np.ndarray) -> tuple[tuple[float, ...], float]:
    """Return the mixture of rows with the highest payoff against the worst column, and that."""
    optimize = require("scipy.optimize", extra=EXTRA)
    rows, columns = payoffs.shape
    # Variables: the weights, and the payoff v that no column may be below. Maximise v.
    solved = optimize.linprog(
        np.append(np.zeros(rows), -1.0),
        A_ub=np.hstack([-payoffs.T, np.ones((columns, 1))]),
        b_ub=np.zeros(columns),
        A_eq=np.append(np.ones(rows), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, 1)] * rows + [(None, None)],
        method="highs",
    )
    weights = np.round(np.clip(solved.x[:rows], 0, None), DECIMALS)
    return tuple((weights / weights.sum()).tolist()), float(solved.x[rows])


def exploitability(
    rates: Sequence[Sequence[float]],
    attackers: Sequence[float] | None = None,
    targets: Sequence[float] | None = None,
) -> float:
    """Return how far two mixtures are from an equilibrium of a zero-sum matrix game.

    It is what the best single attacker gains against the mixture of targets, plus what the best
    single target gains against the mixture of attackers (NashConv, Lanctot et al. 2017, arXiv
    1711.00832): 0 at an equilibrium, at most 1 for rates.

    Args:
        rates: Success rate by attacker (rows) and target (columns), not empty.
        attackers: Weight of each attacker, adding up to 1; None is the uniform mixture.
        targets: The same for the targets.

    Returns:
        The sum; NaN if a rate is.
    """
    columns: list[tuple[float, ...]] = list(zip(*rates, strict=True))
    if any(math.isnan(rate) for row in rates for rate in row):
        return math.nan
    best_attacker = max(_mean(row, targets) for row in rates)
    best_target = min(_mean(column, attackers) for column in columns)
    return best_attacker - best_target


def exploitability_interval(intervals: Sequence[Sequence[Interval]]) -> Interval:
    """Return where the exploitability of the uniform mixtures is if all rates are in intervals.

    The largest of noisy rates is too large on average, so the exploitability of measured rates is,
    too: with rates of 50% in 20 conversations each, four attackers and targets that are all alike
    have 0.11 on average.

    Args:
        intervals: Interval of each rate, by attacker (rows) and target (columns), which hold
            together; not empty.
    """
    low = [[each.low for each in row] for row in intervals]
    high = [[each.high for each in row] for row in intervals]
    gains = [max(map(_uniform, rows)) for rows in (low, high)]
    least = [min(map(_uniform, zip(*rows, strict=True))) for rows in (low, high)]
    return Interval(max(0.0, gains[0] - least[1]), min(1.0, gains[1] - least[0]))


def _uniform(values: Sequence[float]) -> float:
    return _mean(values, None)


def _mean(values: Sequence[float], weights: Sequence[float] | None) -> float:
    if weights is None:
        return sum(values) / len(values)
    return sum(value * weight for value, weight in zip(values, weights, strict=True))
