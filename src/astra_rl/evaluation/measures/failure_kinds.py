"""Failures put in groups, so that one exploit is one finding however often it was found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from astra_rl.evaluation.measures.diversity import greedy_clusters
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome


@dataclass(frozen=True)
class Kind:
    """Attacks of one kind that made the target fail: see `greedy_clusters`.

    Attributes:
        attempts: The conversations, the likeliest attack first: the one a user may come upon.
    """

    attempts: Sequence[Attempt]

    @property
    def attack(self) -> str:
        """The one that stands for all: what made the target fail in the likeliest conversation."""
        turn = self.attempts[0].failing_turn
        return "" if turn is None else turn.attack

    @property
    def severity(self) -> float | None:
        """The judge's highest score."""
        return max((each.score for each in self.attempts if each.score is not None), default=None)

    @property
    def nll(self) -> float | None:
        """Nats per token of the likeliest attack under the baseline; None if none was measured."""
        known = self.attempts[0].logprob()
        return None if known is None else -known.per_token


def kinds_of_failure(attempts: Iterable[Attempt]) -> list[Kind]:
    """Group the conversations in which the target failed, the largest group first."""
    failing = [
        (attempt, turn.attack)
        for attempt in attempts
        if attempt.outcome is Outcome.SUCCESS and (turn := attempt.failing_turn) is not None
    ]
    groups = greedy_clusters([attack for _, attack in failing])
    return [
        Kind(sorted((failing[member][0] for member in members), key=_unlikelihood))
        for members in sorted(groups, key=len, reverse=True)
    ]


def _unlikelihood(attempt: Attempt) -> float:
    known = attempt.logprob()
    return math.inf if known is None else -known.per_token
