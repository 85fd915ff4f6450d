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
from astra_rl.moderators.naming import NAMING, naming_moderator
from astra_rl.moderators.secret_leak import SECRET


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
class NamedFailure:
    """Successful attempts with the same failure.

    Attributes:
        name: Name of the failure, see `NamesFailures`.
        attempts: The attempts, those of the most frequent kind of attack first.
    """

    name: str
    attempts: Sequence[Attempt]


def named_failures(attempts: Iterable[Attempt]) -> list[NamedFailure]:
    """Group successful attempts by their first failure, the largest group first.

    Attempts of judges that name no failures are left out, and those of a single secret, which has
    no name.
    """
    rules = {type(rule).__name__: rule for rule in map(naming_moderator, NAMING)}
    groups: dict[str, list[Attempt]] = {}
    for kind in kinds_of_failure(attempts):
        for attempt in kind.attempts:
            rule = rules.get(attempt.judge)
            names = () if rule is None else rule.failures(_failing_exchange(attempt))
            if names and names[0] != SECRET:
                groups.setdefault(names[0], []).append(attempt)
    found = [NamedFailure(name, group) for name, group in groups.items()]
    return sorted(found, key=lambda each: -len(each.attempts))


def _failing_exchange(attempt: Attempt) -> Exchange:
    """Return the turn in which the target first failed, after those before it."""
    context, failing = attempt.opening.conversation(), attempt.failing_turn
    assert failing is not None
    for turn in attempt.turns:
        if turn is failing:
            break
        context = context + turn.attack + turn.response
    return Exchange(context, failing.attack, failing.response)


def most_likely_kinds(kinds: Iterable[Kind]) -> list[Kind]:
    """Return the kinds with a measured likelihood, by their most likely attempt."""
    measured = [kind for kind in kinds if kind.likelihood is not None]
    return sorted(measured, key=lambda kind: _unlikelihood(kind.attempts[0]))


def _unlikelihood(attempt: Attempt) -> float:
    known = attempt.logprob()
    return math.inf if known is None else -known.total
