"""Failures ranked by the likelihood of their attacks under a baseline of ordinary use."""

from __future__ import annotations

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
    if by not in ("total", "per_token"):
        raise ConfigurationError(f"by={by!r}; choose 'total' or 'per_token'.")
    if most is not None and most < 1:
        raise ConfigurationError(f"most={most}; it must be at least 1, or None for all.")
    kept: list[tuple[float, str, LikelyFailure]] = []
    ranked = unmeasured = 0
    for attempt in attempts:
        if attempt.outcome is not Outcome.SUCCESS:
            continue
        failure = _likely(attempt, under)
        if failure is None:
            unmeasured += 1
            continue
        ranked += 1
        value = failure.logprob if by == "total" else failure.per_token
        entry = (value, f"{attempt.id}-{ranked}", failure)
        if most is None or len(kept) < most:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    failures = [failure for _, _, failure in sorted(kept, key=lambda each: (-each[0], each[1]))]
    return Ranking(under, by, failures, ranked, unmeasured)


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


def severity_and_likelihood(attempts: Iterable[Attempt], *, under: str = "baseline") -> list[Point]:
    """Return one point per attempt that has both a score and a likelihood."""
    points = []
    for attempt in attempts:
        likely = _likely(attempt, under)
        if likely is not None:
            points.append(
                Point(
                    attempt.id,
                    -likely.logprob,
                    -likely.per_token,
                    likely.severity,
                    attempt.outcome is Outcome.SUCCESS,
                )
            )
    return points
