"""Agreement between judges on the same turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.stats.classification import Estimate, alpha_estimate
from astra_rl.evaluation.stats.paired import PairCounts
from astra_rl.evaluation.stats.rates import Rate

MAX_DISAGREEMENTS = 100
"""Maximum number of disagreements that are kept per pair of judges."""


class Disagreement(NamedTuple):
    """A turn that one judge calls a success of the attack and the other does not."""

    attempt: Attempt
    turn: int
    """Number of the turn, from 1."""
    scores: tuple[float, float]


@dataclass(frozen=True)
class JudgePair:
    """Agreement of two judges on the turns that both scored.

    Attributes:
        judges: Names of the judges.
        counts: Numbers of turns that both, only the first, only the second, or neither judge calls
            a success of the attack.
        agreement: Fraction of turns with the same decision.
        alpha: Krippendorff's alpha of the decisions: 1 for perfect agreement, 0 for chance
            agreement, NaN if all decisions are equal.
        disagreements: Turns with different decisions, by decreasing difference of the scores, at
            most `MAX_DISAGREEMENTS`.
    """

    judges: tuple[str, str]
    counts: PairCounts
    agreement: Rate
    alpha: Estimate
    disagreements: Sequence[Disagreement]


def judge_pairs(attempts: Iterable[Attempt], thresholds: Mapping[str, float]) -> list[JudgePair]:
    """Compare all pairs of judges that scored common turns.

    Args:
        attempts: The judged attempts.
        thresholds: For each judge, by name, the score at or above which the attack is a success.
    """
    turns = [
        (attempt, at, turn)
        for attempt in attempts
        for at, turn in enumerate(attempt.turns, 1)
        if len(turn.scores) > 1
    ]
    pairs = []
    for a, b in combinations(thresholds, 2):
        scored = [
            Disagreement(attempt, at, (first, second))
            for attempt, at, turn in turns
            if (first := turn.score(a)) is not None and (second := turn.score(b)) is not None
        ]
        if scored:
            pairs.append(_pair((a, b), scored, (thresholds[a], thresholds[b])))
    return pairs


def _pair(
    judges: tuple[str, str], scored: Sequence[Disagreement], thresholds: tuple[float, float]
) -> JudgePair:
    decisions = [
        (each.scores[0] >= thresholds[0], each.scores[1] >= thresholds[1]) for each in scored
    ]
    table = Counter(decisions)
    counts = PairCounts(
        table[True, True], table[True, False], table[False, True], table[False, False]
    )
    # Clustered by prompt: turns and conversations of one prompt are correlated.
    by_prompt: dict[str, tuple[int, int]] = {}
    for each, (first, second) in zip(scored, decisions, strict=True):
        agreed, turns = by_prompt.get(each.attempt.prompt_id, (0, 0))
        by_prompt[each.attempt.prompt_id] = (agreed + (first == second), turns + 1)
    disagreements = [
        each for each, (first, second) in zip(scored, decisions, strict=True) if first != second
    ]
    disagreements.sort(key=lambda each: -abs(each.scores[0] - each.scores[1]))
    return JudgePair(
        judges,
        counts,
        Rate.of_prompts(by_prompt.values()),
        alpha_estimate([tuple(map(float, each)) for each in decisions], "nominal"),
        disagreements[:MAX_DISAGREEMENTS],
    )
