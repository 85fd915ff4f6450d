"""Failures grouped by similar attacks, so that an exploit counts as one finding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from astra_rl.core.text import Exchange
from astra_rl.evaluation.measures.text_clusters import greedy_clusters
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.records.turn import LogProb
from astra_rl.moderators.secret_leak import SecretLeakModerator, is_named_secret


@dataclass(frozen=True)
class Kind:
    """A group of successful attempts with similar attacks, see `greedy_clusters`.

    Attributes:
        attempts: The attempts, the most likely first: by the log-probability of their attacks up to
            the failure under the baseline, as in `most_likely_failures`.
    """

    attempts: Sequence[Attempt]

    @property
    def attack(self) -> str:
        """The successful attack of the most likely attempt, as the example of the group."""
        turn = self.attempts[0].failing_turn
        return "" if turn is None else turn.attack

    @property
    def severity(self) -> float | None:
        """The judge's highest score."""
        return max((each.score for each in self.attempts if each.score is not None), default=None)

    @property
    def likelihood(self) -> LogProb | None:
        """Log-probability of the most likely attempt under the baseline; None if unmeasured."""
        return self.attempts[0].logprob()


def kinds_of_failure(attempts: Iterable[Attempt]) -> list[Kind]:
    """Group successful attempts, the largest group first."""
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


@dataclass(frozen=True)
class Revealed:
    """Successful attempts that revealed one secret.

    Attributes:
        name: Name of the secret, see `SecretLeakModerator.revealed`.
        attempts: The attempts, those of the most frequent kind of attack first.
    """

    name: str
    attempts: Sequence[Attempt]


def failures_by_secret(attempts: Iterable[Attempt]) -> list[Revealed]:
    """Group successful attempts by the first secret that was revealed, the largest group first.

    Attempts whose openings have no named secrets are left out.
    """
    rule = SecretLeakModerator()
    groups: dict[str, list[Attempt]] = {}
    for kind in kinds_of_failure(attempts):
        for attempt in kind.attempts:
            turn = attempt.failing_turn
            if turn is None or not any(map(is_named_secret, attempt.opening.facts)):
                continue
            said = Exchange(attempt.opening.conversation(), turn.attack, turn.response)
            for name in rule.revealed(said)[:1]:
                groups.setdefault(name, []).append(attempt)
    found = [Revealed(name, group) for name, group in groups.items()]
    return sorted(found, key=lambda each: -len(each.attempts))


def most_likely_kinds(kinds: Iterable[Kind]) -> list[Kind]:
    """Return the kinds with a measured likelihood, by their most likely attempt."""
    measured = [kind for kind in kinds if kind.likelihood is not None]
    return sorted(measured, key=lambda kind: _unlikelihood(kind.attempts[0]))


def _unlikelihood(attempt: Attempt) -> float:
    known = attempt.logprob()
    return math.inf if known is None else -known.total
