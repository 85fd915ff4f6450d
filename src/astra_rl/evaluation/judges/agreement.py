"""Agreement between judges on the same turns."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.stats.agreement import alpha_estimate
from astra_rl.evaluation.stats.paired_tables import PairCounts
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.resampling import Estimate

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


class PairTally:
    """Agreement of two judges, counted turn by turn; it takes a few bytes per turn.

    Args:
        judges: Names of the judges.
        thresholds: For each, the score at or above which the attack is a success.
    """

    def __init__(self, judges: tuple[str, str], thresholds: tuple[float, float]) -> None:
        self.judges, self.thresholds = judges, thresholds
        self._decisions: list[tuple[float, float]] = []  # one of four shared objects per turn
        # Clustered by prompt: turns and conversations of one prompt are correlated.
        self._by_prompt: dict[str, tuple[int, int]] = {}
        self._prompts: dict[str, int] = {}
        self._prompt_of = array("q")  # of each turn
        self._largest: list[tuple[float, int, Disagreement]] = []

    def add(self, attempt: Attempt) -> None:
        """Count the turns of an attempt that both judges scored."""
        for number, turn in enumerate(attempt.turns, 1):
            first, second = (turn.score(judge) for judge in self.judges)
            if first is not None and second is not None:
                self._add(Disagreement(attempt, number, (first, second)))

    def _add(self, turn: Disagreement) -> None:
        first, second = (s >= t for s, t in zip(turn.scores, self.thresholds, strict=True))
        self._decisions.append(_DECISIONS[first, second])
        prompt = turn.attempt.prompt_id
        self._prompt_of.append(self._prompts.setdefault(prompt, len(self._prompts)))
        agreed, turns = self._by_prompt.get(turn.attempt.prompt_id, (0, 0))
        self._by_prompt[turn.attempt.prompt_id] = (agreed + (first == second), turns + 1)
        if first != second:
            difference = abs(turn.scores[0] - turn.scores[1])
            heapq.heappush(self._largest, (difference, -len(self._decisions), turn))
            if len(self._largest) > MAX_DISAGREEMENTS:
                heapq.heappop(self._largest)

    @property
    def disagreements(self) -> list[Disagreement]:
        """See `JudgePair`."""
        return [turn for _, _, turn in sorted(self._largest, reverse=True)]

    def result(self) -> JudgePair | None:
        """Return the agreement; None if no turn was scored by both."""
        if not self._decisions:
            return None
        table = Counter(self._decisions)
        return JudgePair(
            self.judges,
            PairCounts(*(table[_DECISIONS[each]] for each in _DECISIONS)),
            Rate.of_prompts(self._by_prompt.values()),
            alpha_estimate(self._decisions, "nominal", groups=self._prompt_of),
            self.disagreements,
        )


_DECISIONS = {
    (True, True): (1.0, 1.0),
    (True, False): (1.0, 0.0),
    (False, True): (0.0, 1.0),
    (False, False): (0.0, 0.0),
}
"""Ratings of both judges by their decisions, in the order of `PairCounts`."""


def judge_pairs(attempts: Iterable[Attempt], thresholds: Mapping[str, float]) -> list[JudgePair]:
    """Compare all pairs of judges that scored common turns.

    Args:
        attempts: The judged attempts.
        thresholds: For each judge, by name, the score at or above which the attack is a success.
    """
    tallies = [
        PairTally((a, b), (thresholds[a], thresholds[b])) for a, b in combinations(thresholds, 2)
    ]
    for attempt in attempts:
        for tally in tallies:
            tally.add(attempt)
    return [pair for tally in tallies if (pair := tally.result()) is not None]
