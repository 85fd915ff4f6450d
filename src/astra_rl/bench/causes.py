"""Causes of failures: the pairs of adjacent words that explain which attacks succeeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from astra_rl.bench.discovery import Call

Pair = tuple[str, str]


def causes(calls: Sequence[Call], doubt: float = 2.0) -> dict[Pair, list[str]]:
    """Group the reported attacks by the pair of adjacent words that explains the failure best.

    A rule list (Rivest, *Machine Learning* 2, 1987), learned greedily: of the pairs in attacks
    without a cause yet, the next is the one with the highest ``reported / (all + doubt)``, where
    both are numbers of different attacks with the pair. Only the judge's reports are used, not the
    planted modes.

    Args:
        calls: Calls of the target; those of an unknown attack are left out.
        doubt: Attacks without a report that are added to those of each pair, 0 or more. A pair of
            few attacks explains less than one of many.

    Returns:
        The attacks of each pair, sorted; each reported attack of at least two words is in one
        group.
    """
    reported: dict[str, bool] = {}
    for call in calls:
        if call.attack is not None:
            reported[call.attack] = reported.get(call.attack, False) or call.reported
    pairs = {attack: set(pairwise(attack.lower().split())) for attack in reported}
    every = Counter(pair for each in pairs.values() for pair in each)
    failed = Counter(pair for attack, each in pairs.items() if reported[attack] for pair in each)
    left = {attack for attack, is_reported in reported.items() if is_reported and pairs[attack]}
    found: dict[Pair, list[str]] = {}
    while left:
        counts = Counter(pair for attack in left for pair in pairs[attack])
        cause = max(
            counts, key=lambda pair: (failed[pair] / (every[pair] + doubt), counts[pair], pair)
        )
        found[cause] = sorted(attack for attack in left if cause in pairs[attack])
        left.difference_update(found[cause])
    return found
