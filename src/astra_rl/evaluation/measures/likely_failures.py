"""Failures ranked by the likelihood of their attacks under a baseline of ordinary use."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome


@dataclass(frozen=True)
class LikelyFailure:
    """A successful attempt and the likelihood of its attacks.

    Attributes:
        attempt: The conversation.
        logprob: Log-probability of the attacks up to the first failing turn, in nats.
        per_token: The same per token.
        tokens: Number of tokens of those attacks.
        severity: The judge's highest score.
    """

    attempt: Attempt
    logprob: float
    per_token: float
    tokens: int
    severity: float


@dataclass(frozen=True)
class Ranking:
    """Successful attempts, the most likely first.

    Attributes:
        under: Baseline model.
        by: Criterion of the order.
        failures: The most likely ones.
        ranked: Number of successful attempts with a likelihood.
        unmeasured: Number of successful attempts without one; they are not ranked.
    """

    under: str
    by: Literal["total", "per_token"]
    failures: Sequence[LikelyFailure]
    ranked: int
    unmeasured: int

    def as_dict(self) -> dict[str, Any]:
        """Return the ranking as JSON values, with the turns up to each failure."""
        return {
            "under": self.under,
            "by": self.by,
            "ranked": self.ranked,
            "unmeasured": self.unmeasured,
            "failures": [
                {
                    "id": each.attempt.id,
                    "prompt_id": each.attempt.prompt_id,
                    "target": each.attempt.target,
                    "logprob": each.logprob,
                    "per_token": each.per_token,
                    "tokens": each.tokens,
                    "severity": each.severity,
                    "turns": [
                        {"attack": turn.attack, "response": turn.response}
                        for turn in each.attempt.turns[: each.attempt.first_failing_turn]
                    ],
                }
                for each in self.failures
            ],
        }


def most_likely_failures(
    attempts: Iterable[Attempt],
    *,
    under: str = "baseline",
    by: Literal["total", "per_token"] = "total",
    most: int | None = None,
) -> Ranking:
    """Rank successful attempts by the likelihood of their attacks under the baseline.

    Adaptive stress testing searches for the most likely failure (Lee et al., JAIR 69, 2020). The
    total log-probability favours short attacks; per token the order does not depend on length.

    Args:
        attempts: Attempts, read one by one; only successful ones are ranked.
        under: Role or name of the baseline model.
        by: ``"total"`` or ``"per_token"``.
        most: Number of attempts to keep; None keeps all.

    Raises:
        ConfigurationError: `by` has another value, or `most` is below 1.
    """
    ranker = FailureRanker(under=under, by=by, most=most)
    for attempt in attempts:
        ranker.add(attempt)
    return ranker.result()


class FailureRanker:
    """Ranks successful attempts one by one; see `most_likely_failures` for the arguments."""

    def __init__(
        self,
        *,
        under: str = "baseline",
        by: Literal["total", "per_token"] = "total",
        most: int | None = None,
    ) -> None:
        if by not in ("total", "per_token"):
            raise ConfigurationError(f"by={by!r}; choose 'total' or 'per_token'.")
        if most is not None and most < 1:
            raise ConfigurationError(f"most={most}; it must be at least 1, or None for all.")
        self.under, self.by, self.most = under, by, most
        self._kept: list[tuple[float, str, LikelyFailure]] = []
        self._ranked = self._unmeasured = 0

    def add(self, attempt: Attempt) -> None:
        """Rank an attempt if it was successful."""
        if attempt.outcome is not Outcome.SUCCESS:
            return
        failure = _likely(attempt, self.under)
        if failure is None:
            self._unmeasured += 1
            return
        self._ranked += 1
        value = failure.logprob if self.by == "total" else failure.per_token
        entry = (value, f"{attempt.id}-{self._ranked}", failure)
        if self.most is None or len(self._kept) < self.most:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def result(self) -> Ranking:
        """Return the ranking of the attempts so far."""
        kept = sorted(self._kept, key=lambda each: (-each[0], each[1]))
        failures = [failure for _, _, failure in kept]
        return Ranking(self.under, self.by, failures, self._ranked, self._unmeasured)


def _likely(attempt: Attempt, under: str) -> LikelyFailure | None:
    known = attempt.logprob(under)
    if known is None or attempt.score is None:
        return None
    return LikelyFailure(attempt, known.total, known.per_token, known.tokens, attempt.score)


class Point(NamedTuple):
    """One attempt in the chart of severity against likelihood.

    Attributes:
        id: Id of the attempt.
        nll: Negative log-likelihood of its attacks under the baseline, in nats.
        nll_per_token: The same per token.
        severity: The judge's highest score, in [0, 1].
        fails: Whether the severity reached the threshold.
    """

    id: str
    nll: float
    nll_per_token: float
    severity: float
    fails: bool


MOST_POINTS = 10_000
"""Most points of a chart; more cannot be told apart."""


def severity_and_likelihood(attempts: Iterable[Attempt], *, under: str = "baseline") -> list[Point]:
    """Return one point per attempt that has both a score and a likelihood.

    Of more than `MOST_POINTS`, so many are chosen by a digest of their ids: a sample that favours
    no prompt, and is the same for the same attempts. The order is that of the attempts.
    """
    chosen: list[tuple[bytes, int, Point]] = []  # a heap of digests
    for number, attempt in enumerate(attempts):
        likely = _likely(attempt, under)
        if likely is None:
            continue
        point = Point(
            attempt.id,
            -likely.logprob,
            -likely.per_token,
            likely.severity,
            attempt.outcome is Outcome.SUCCESS,
        )
        entry = hashlib.blake2b(attempt.id.encode(), digest_size=8).digest(), number, point
        if len(chosen) < MOST_POINTS:
            heapq.heappush(chosen, entry)
        else:
            heapq.heappushpop(chosen, entry)
    return [point for _, _, point in sorted(chosen, key=lambda entry: entry[1])]
