"""Failures grouped by similar attacks, so that an exploit counts as one finding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
        name: Name of the failure, see `NamesFailures`; empty for a kind without a name.
        attempts: The attempts, those of the most frequent kind of attack first.
    """

    name: str
    attempts: Sequence[Attempt]


def named_failures(attempts: Iterable[Attempt]) -> list[NamedFailure]:
    """Group successful attempts by their first failure, the largest group first.

    Attempts without a name are grouped by `kinds_of_failure`: those of judges that name no
    failures, of a single secret, and of a secret of which only a part was revealed.
    """
    rules = {type(rule).__name__: rule for rule in map(naming_moderator, NAMING)}
    groups: dict[str, list[Attempt]] = {}
    found = []
    for kind in kinds_of_failure(attempts):
        unnamed = []
        for attempt in kind.attempts:
            at, rule = attempt.first_failing_turn, rules.get(attempt.judge)
            names: tuple[str, ...] = ()
            if rule is not None and at is not None:
                names = rule.failures(attempt.exchanges()[at - 1])
            if names and names[0] != SECRET:
                groups.setdefault(names[0], []).append(attempt)
            else:
                unnamed.append(attempt)
        if unnamed:
            found.append(NamedFailure("", unnamed))
    found += [NamedFailure(name, group) for name, group in groups.items()]
    return sorted(found, key=lambda each: -len(each.attempts))


def most_likely_kinds(kinds: Iterable[Kind]) -> list[Kind]:
    """Return the kinds with a measured likelihood, by their most likely attempt."""
    measured = [kind for kind in kinds if kind.likelihood is not None]
    return sorted(measured, key=lambda kind: _unlikelihood(kind.attempts[0]))


def _unlikelihood(attempt: Attempt) -> float:
    known = attempt.logprob()
    return math.inf if known is None else -known.total
