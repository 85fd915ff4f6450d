"""Whether judges say the same of the same answers."""

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


class Disagreement(NamedTuple):
    """A turn of which one judge says that the target failed, and another that it did not."""

    attempt: Attempt
    turn: int
    """Counted from 1."""
    scores: tuple[float, float]


@dataclass(frozen=True)
class JudgePair:
    """Two judges on the turns that both scored.

    Attributes:
        judges: Their names.
        counts: Turns by what they say: both call it a failure, only the first, only the second,
            neither.
        agreement: Share of turns of which they say the same.
        alpha: Krippendorff's alpha of what they say: 1 if they always agree, 0 if no more than by
            chance; NaN if neither ever says anything else.
        disagreements: Those furthest apart first, at most `MAX_DISAGREEMENTS`.
    """

    judges: tuple[str, str]
    counts: PairCounts
    agreement: Rate
    alpha: Estimate
    disagreements: Sequence[Disagreement]


def judge_pairs(attempts: Iterable[Attempt], thresholds: Mapping[str, float]) -> list[JudgePair]:
    """Compare every two judges that scored some turn both.

    Args:
        attempts: What was judged.
        thresholds: Judges by name, and from which score on each calls a turn a failure.
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
    said = [(each.scores[0] >= thresholds[0], each.scores[1] >= thresholds[1]) for each in scored]
    table = Counter(said)
    counts = PairCounts(
        table[True, True], table[True, False], table[False, True], table[False, False]
    )
    # Turns of one conversation are alike, as are conversations of one prompt.
    by_prompt: dict[str, tuple[int, int]] = {}
    for each, (first, second) in zip(scored, said, strict=True):
        agreed, turns = by_prompt.get(each.attempt.prompt_id, (0, 0))
        by_prompt[each.attempt.prompt_id] = (agreed + (first == second), turns + 1)
    apart = [each for each, (first, second) in zip(scored, said, strict=True) if first != second]
    apart.sort(key=lambda each: -abs(each.scores[0] - each.scores[1]))
    return JudgePair(
        judges,
        counts,
        Rate.of_prompts(by_prompt.values()),
        alpha_estimate([tuple(map(float, each)) for each in said], "nominal"),
        apart[:MAX_DISAGREEMENTS],
    )
