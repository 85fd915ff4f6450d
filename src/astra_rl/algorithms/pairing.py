"""Pairs of siblings for preference optimisation, the one with the higher reward first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from astra_rl.algorithms.advantages import TIE_TOLERANCE
from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.policy_steps import PolicyStep, groups_of, steps_of
from astra_rl.algorithms.weighting import SharedNodes, check_shared_nodes
from astra_rl.core.contracts import is_missing
from astra_rl.core.graph import Graph
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.ranges import NotNegative, check_ranges

Pair = tuple[PolicyStep, PolicyStep]
"""The chosen and the rejected attack, of the same context."""
Matching = Callable[[Sequence[PolicyStep]], Iterator[Pair]]
"""Maps siblings that all have a reward, sorted best first, to pairs; `Pairs` drops ties."""


def best_worst(siblings: Sequence[PolicyStep]) -> Iterator[Pair]:
    """The best sibling against the worst."""
    if siblings:
        yield siblings[0], siblings[-1]


def all_pairs(siblings: Sequence[PolicyStep]) -> Iterator[Pair]:
    """Every sibling against every worse one."""
    return combinations(siblings, 2)


MATCHINGS: dict[str, Matching] = {"best_worst": best_worst, "all": all_pairs}
"""Ways to pair siblings, by their names in a configuration."""


class Pairs:
    """Makes pairs of the siblings of an episode, and counts those that are dropped.

    A turn with a missing reward is left out; its siblings still make pairs. Two equal attacks are
    never a pair.

    Args:
        pairs: One of `MATCHINGS`, or a function.
        min_gap: Minimum difference of rewards, not negative. Ties are always dropped.
        credit: How reward is passed back to earlier turns, one of `CREDITS`.
        gamma: Discount per turn, in [0, 1]; used by the backups.
        shared_nodes: Weights of the turns.

    Attributes:
        found: Pairs since `reset`.
        tied: Pairs dropped since `reset`, because of close rewards or equal attacks.
        missing: Turns left out since `reset`, because of a missing reward.

    Raises:
        ConfigurationError: An unknown name, or a value out of range.
    """

    def __init__(
        self,
        pairs: str | Matching = "best_worst",
        min_gap: NotNegative = 0.0,
        credit: str = "turn",
        gamma: float = 0.9,
        shared_nodes: SharedNodes = "expected_return",
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
        check_ranges(Pairs, {"min_gap": min_gap})
        self.matching = pairs
        # Minus the tolerance, because 0.3 - 0.1 is slightly less than 0.2 in floating point.
        self.min_gap = max(min_gap - TIE_TOLERANCE, TIE_TOLERANCE)
        self.credit = Credit(credit, gamma)
        check_shared_nodes(shared_nodes)
        self.shared_nodes = shared_nodes
        self.reset()

    def reset(self) -> None:
        """Set the counts to zero."""
        self.found = self.tied = self.missing = 0

    def __call__(self, graph: Graph[str, str]) -> list[tuple[PolicyStep, PolicyStep, float]]:
        """Return the chosen attack, the rejected attack and the reward difference of every pair."""
        steps = steps_of(graph, self.shared_nodes)
        rewards = self.credit(
            [step.reward for step in steps],
            [step.place.parent for step in steps],
            [step.place.continuation for step in steps],
        )
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
