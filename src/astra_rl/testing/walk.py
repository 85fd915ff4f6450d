"""A game whose failures are rare, with a probability known by enumeration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ONE_IN_A_MILLION = 0.07516714899953648
"""Probability of a step up with which `RareWalk` fails once in a million."""


class RareWalk:
    """Conversations of ten turns; each is a step up (the target gives in) or down (it recovers).

    The target fails at height 6, which ends the conversation. It is a
    `astra_rl.evaluation.stats.cross_entropy.Policy` with one probability per height.

    Args:
        up: Probability of a step up at each height from 0 to 5; a number: at all of them.
    """

    turns, top = 10, 6

    def __init__(self, up: float | Sequence[float] | NDArray[np.float64] = ONE_IN_A_MILLION):
        self.up = np.append(np.broadcast_to(np.asarray(up, dtype=np.float64), self.top), 0.5)

    @classmethod
    def heights(cls, steps: NDArray[Any]) -> NDArray[np.int64]:
        """Return the height before each turn and at the end, (N, turns + 1).

        Args:
            steps: 1 for a step up and 0 for one down, (N, turns).
        """
        found = np.zeros((len(steps), cls.turns + 1), dtype=np.int64)
        for turn in range(cls.turns):
            at = found[:, turn]
            moved = np.where(steps[:, turn] == 1, at + 1, np.maximum(0, at - 1))
            found[:, turn + 1] = np.where(at == cls.top, cls.top, moved)
        return found

    @classmethod
    def score(cls, steps: NDArray[Any]) -> NDArray[np.float64]:
        """Return the largest height of each conversation, in [0, 1]; 1 is a failure."""
        found: NDArray[np.float64] = cls.heights(steps).max(axis=1) / cls.top
        return found

    @classmethod
    def calls(cls, steps: NDArray[Any]) -> int:
        """Return the number of turns that were played, which are target calls."""
        return int((cls.heights(steps)[:, :-1] < cls.top).sum())

    def sample(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return conversations, (count, turns)."""
        steps = np.zeros((count, self.turns), dtype=np.int64)
        for turn in range(self.turns):
            steps[:, turn] = generator.random(count) < self.up[self.heights(steps)[:, turn]]
        return steps

    def logprobs(self, conversations: NDArray[Any]) -> NDArray[np.float64]:
        """Return the log-probability of the turns that were played, (N,)."""
        at = self.heights(conversations)[:, :-1]
        chances = np.where(conversations == 1, self.up[at], 1 - self.up[at])
        found: NDArray[np.float64] = np.where(at < self.top, np.log(chances), 0.0).sum(axis=1)
        return found

    def fitted(self, conversations: NDArray[Any], weights: NDArray[np.float64]) -> RareWalk:
        """Return the walk fitted by maximum likelihood, smoothed by the mean weight."""
        at = self.heights(conversations)[:, :-1]
        each = np.broadcast_to(weights[:, None], at.shape)
        size = self.top + 1
        ups = np.bincount(at.ravel(), (each * conversations).ravel(), minlength=size)
        all_ = np.bincount(at.ravel(), each.ravel(), minlength=size)
        prior = weights.mean()
        fitted = (ups + prior * self.up) / (all_ + prior)
        return RareWalk(np.clip(fitted[:-1], 0.02, 0.98))
