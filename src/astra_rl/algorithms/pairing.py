"""Which attacks are compared: pairs of siblings, the better one first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from astra_rl.algorithms.advantages import TIE_TOLERANCE
from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.policy_steps import PolicyStep, groups_of, steps_of
from astra_rl.core.contracts import check_number, is_missing
from astra_rl.core.graph import Graph
from astra_rl.errors import ConfigurationError, did_you_mean

Pair = tuple[PolicyStep, PolicyStep]
"""A better and a worse attack of the same context."""
Matching = Callable[[Sequence[PolicyStep]], Iterator[Pair]]
"""Pairs of siblings that all have a reward, best first; `Pairs` leaves out those that tie."""


def best_worst(siblings: Sequence[PolicyStep]) -> Iterator[Pair]:
    """The best sibling against the worst."""
    if siblings:
        yield siblings[0], siblings[-1]


def all_pairs(siblings: Sequence[PolicyStep]) -> Iterator[Pair]:
    """Every sibling against every worse one."""
    return combinations(siblings, 2)


MATCHINGS: dict[str, Matching] = {"best_worst": best_worst, "all": all_pairs}
"""Ways to pair siblings, by the names that a configuration may give."""


class Pairs:
    """Makes pairs of the siblings of an episode and counts what makes none.

    A turn without a reward makes no pair and does not spoil those of its siblings. Attacks that
    say the same are never a pair.

    Args:
        pairs: One of `MATCHINGS`, or a function.
        min_gap: Rewards must differ by at least so much. Those that tie are always dropped.
        credit: What a turn is rewarded for, see `Credit`: `"max_backup"` also for what it leads to.
        gamma: Discount per turn, of the backups.

    Attributes:
        found: Pairs since `reset`.
        tied: Pairs dropped since `reset`, for rewards too close or for saying the same.
        missing: Turns left out since `reset`, for a reward that is missing.

    Raises:
        ConfigurationError: An unknown name, or a value out of range.
    """

    def __init__(
        self,
        pairs: str | Matching = "best_worst",
        min_gap: float = 0.0,
        credit: str = "turn",
        gamma: float = 0.9,
    ) -> None:
        if isinstance(pairs, str):
            if pairs not in MATCHINGS:
                raise ConfigurationError(
                    f"pairs={pairs!r}; choose from {list(MATCHINGS)}."
                    f"{did_you_mean(pairs, MATCHINGS)}"
                )
            pairs = MATCHINGS[pairs]
        if not callable(pairs):
            raise ConfigurationError(
                f"pairs={pairs!r}; choose from {list(MATCHINGS)}, or give a function."
            )
        check_number("min_gap", min_gap, lambda gap: gap >= 0, "0 or more")
        self.matching = pairs
        # Less the tolerance: 0.3 - 0.1 is a little less than 0.2, and yet it is at least that.
        self.min_gap = max(min_gap - TIE_TOLERANCE, TIE_TOLERANCE)
        self.credit = Credit(credit, gamma)
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.found = self.tied = self.missing = 0

    def __call__(self, graph: Graph[str, str]) -> list[tuple[PolicyStep, PolicyStep, float]]:
        """Return better attack, worse attack and the gap between their rewards, of every pair."""
        steps = steps_of(graph)
        rewards = self.credit([s.reward for s in steps], [s.place.parent for s in steps])
        out = []
        for group in groups_of(steps, "siblings"):
            present = [row for row in group if not is_missing(rewards[row])]
            self.missing += len(group) - len(present)
            present.sort(key=lambda row: -rewards[row])
            gaps = {id(steps[row]): rewards[row] for row in present}
            for better, worse in self.matching([steps[row] for row in present]):
                gap = gaps[id(better)] - gaps[id(worse)]
                if gap < self.min_gap or better.attack == worse.attack:
                    self.tied += 1
                else:
                    out.append((better, worse, gap))
        self.found += len(out)
        return out
