"""Confidence sequence of a rate: an interval that holds at every time at which one looks.

An evaluation that stops when its result is clear needs an interval that covers the rate at all
times together, whatever the rule of stopping. For each rate m in question, a gambler bets against
it: with the bet p, the wealth after the values x is the product of ``x p / m + (1 - x) (1 - p) /
(1 - m)``. If m is the mean of each value given the earlier ones, the wealth is a martingale that
starts at 1, so it reaches ``1 / alpha`` with a probability of at most alpha (Ville). The interval
has all m against which the mean wealth of many bets p is below ``1 / alpha`` (Waudby-Smith and
Ramdas, *JRSS B* 86, 2024; the bets have the weights of Jeffreys' prior, so for values of 0 and 1
this is the mixture of Robbins, *Ann. Math. Stat.* 41, 1970). It is exact for values in [0, 1], and
does not depend on their order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.intervals import Array, Interval

_BETS = np.sin(np.pi * (np.arange(512) + 0.5) / 1024) ** 2
"""Quantiles of the Beta(1/2, 1/2) distribution, with equal weights."""


def confidence_sequence(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Return the interval of the mean of values in [0, 1] that arrive one after the other.

    Args:
        values: For instance the success rate of each prompt, in any order.
        confidence: Probability that the interval holds at all times together, in (0, 1).

    Returns:
        The interval, which contains the mean of the values; (0, 1) without values.

    Raises:
        ConfigurationError: A value or `confidence` is out of range.
    """
    counts = Counter(map(float, values))
    if not all(0 <= value <= 1 for value in counts):
        raise ConfigurationError("a value is outside of [0, 1].")
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence={confidence}; it must be between 0 and 1.")
    if not counts:
        return Interval(0.0, 1.0)
    x, weights = _table(counts)
    mean = float(weights @ x) / float(weights.sum())
    limit = -math.log(1 - confidence)
    return Interval(_end(x, weights, mean, 0.0, limit), _end(x, weights, mean, 1.0, limit))


def log_e_value(values: Iterable[float], rate: float) -> float:
    """Return the log of the wealth of a gambler who bets that the mean of the values is not `rate`.

    At all times together it exceeds ``log(1 / alpha)`` with a probability of at most alpha if the
    mean is `rate`. `confidence_sequence` has the rates at which it is smaller.

    Args:
        values: In [0, 1], at least one.
        rate: In (0, 1).
    """
    return _log_wealth(*_table(Counter(map(float, values))), rate)


def _table(counts: Counter[float]) -> tuple[Array, Array]:
    """Return the different values and how often each occurs."""
    return (
        np.array(list(counts), dtype=np.float64),
        np.array(list(counts.values()), dtype=np.float64),
    )


def _end(x: Array, weights: Array, mean: float, far: float, limit: float) -> float:
    """Find an end by bisection: the wealth is log-convex in m, and at most 1 at the mean."""
    if mean == far:
        return far
    near = mean
    for _ in range(50):
        middle = (near + far) / 2
        near, far = (near, middle) if _log_wealth(x, weights, middle) >= limit else (middle, far)
    return far


def _log_wealth(x: Array, weights: Array, m: float) -> float:
    """Log of the mean wealth of all bets against m, in (0, 1)."""
    gains = np.outer(x, _BETS / m) + np.outer(1 - x, (1 - _BETS) / (1 - m))
    logs = weights @ np.log(gains)
    largest = float(logs.max())
    return largest + math.log(float(np.exp(logs - largest).mean()))
