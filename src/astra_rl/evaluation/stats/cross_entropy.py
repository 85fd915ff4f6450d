"""Cross-entropy method: fit a proposal to a rare failure, for importance sampling.

A proposal is fitted in rounds. Each samples conversations from the latest proposal, takes the best
ones by the judge's score, and fits the next proposal to them by maximum likelihood, weighted by
their likelihood ratio to the baseline; so the proposals approach the baseline conditioned on the
failure, which has the smallest variance (Rubinstein and Kroese, *The Cross-Entropy Method*, 2004).
The conversations of earlier rounds are used again, weighted by the mixture of their proposals.

The final proposal is used with `importance.failure_probability`, whose bound of unseen failures
also covers modes that the rounds lost. With language models, ``astra-rl train`` fits the proposal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.importance import Sample
from astra_rl.evaluation.stats.intervals import Array

MOST_ROUNDS = 30


class Policy(Protocol):
    """A distribution of conversations that can be fitted."""

    def sample(self, count: int, generator: np.random.Generator) -> NDArray[Any]:
        """Return conversations, one a row."""

    def logprobs(self, conversations: NDArray[Any]) -> Array:
        """Return the natural log-probability of each conversation, shape (N,)."""

    def fitted(self, conversations: NDArray[Any], weights: Array) -> Self:
        """Return a policy fitted by weighted maximum likelihood.

        It must keep a probability above 0 for all that the baseline can say, for instance by
        smoothing, or the next rounds cannot find it.
        """


PolicyT = TypeVar("PolicyT", bound=Policy)

Score = Callable[[NDArray[Any]], Array]
"""Plays conversations against the target and returns the judge's score of each, shape (N,)."""


@dataclass(frozen=True)
class FittedProposal(Generic[PolicyT]):
    """A proposal fitted by `cross_entropy`.

    Attributes:
        policy: The proposal.
        conversations: Number of conversations that were played.
        levels: Score from which conversations were fitted, by round; the last is the threshold.
    """

    policy: PolicyT
    conversations: int
    levels: tuple[float, ...]


def cross_entropy(
    baseline: PolicyT,
    score: Score,
    *,
    threshold: float,
    generator: np.random.Generator,
    conversations: int = 1000,
    elite: float = 0.2,
    refine: int = 1,
) -> FittedProposal[PolicyT]:
    """Fit a proposal to the failures of a target.

    Args:
        baseline: Ordinary use; also the first proposal.
        score: Plays conversations against the target.
        threshold: Score from which a conversation is a failure.
        generator: Source of the random numbers.
        conversations: Number of conversations of a round, at least 2.
        elite: Share of the conversations of a round that are fitted, in (0, 1).
        refine: Further rounds after the first one whose fitted conversations are failures.

    Raises:
        ConfigurationError: An argument is out of range, or the scores do not lead to a failure.
    """
    if conversations < 2 or not 0 < elite < 1 or refine < 0:
        raise ConfigurationError(
            f"conversations={conversations}, elite={elite}, refine={refine}; at least 2 "
            "conversations, elite in (0, 1), refine not negative."
        )
    policies, levels = [baseline], [-math.inf]
    played: list[NDArray[Any]] = []
    scores: list[Array] = []
    while levels.count(threshold) <= refine:
        if len(played) == MOST_ROUNDS:
            raise ConfigurationError(
                f"no failure after {MOST_ROUNDS} rounds; the scores reached {levels[-1]:g} of "
                f"{threshold:g}. Use a judge whose score rises on the way to a failure, or more "
                "conversations a round."
            )
        drawn = policies[-1].sample(conversations, generator)
        played.append(drawn)
        scores.append(_known(score(drawn)))
        levels.append(_next_level(scores[-1], levels[-1], threshold, elite))
        rows, reached = np.concatenate(played), np.concatenate(scores)
        best = rows[reached >= levels[-1]]
        mixture = np.logaddexp.reduce([each.logprobs(best) for each in policies], axis=0)
        logs = baseline.logprobs(best) - mixture
        weights = np.exp(logs - logs.max())  # only their ratios count
        policies.append(baseline.fitted(best, weights))
    return FittedProposal(policies[-1], conversations * len(played), tuple(levels[1:]))


def _known(scores: Any) -> Array:
    """Return scores as an array.

    Raises:
        ConfigurationError: A score is missing; compared with a threshold, it would count as safe.
    """
    found = np.asarray(scores, dtype=np.float64)
    if missing := int(np.isnan(found).sum()):
        raise ConfigurationError(
            f"{missing} of {len(found)} scores are missing (NaN). Play these conversations again, "
            "or use samples with a known outcome and count the others in left_out."
        )
    return found


def _next_level(scores: Array, before: float, threshold: float, elite: float) -> float:
    """Return the score of the best conversations; higher than before, if any is higher."""
    level = float(np.quantile(scores, 1 - elite, method="inverted_cdf"))
    above = scores[scores > before]
    if level <= before and len(above):
        level = float(above.min())
    return min(threshold, max(level, before if math.isfinite(before) else level))


def weighted_samples(
    baseline: PolicyT,
    proposal: PolicyT,
    score: Score,
    *,
    threshold: float,
    generator: np.random.Generator,
    conversations: int,
    share: float = 0.5,
) -> list[Sample]:
    """Play the conversations of a defensive mixture, for `importance.failure_probability`.

    Args:
        baseline: Ordinary use.
        proposal: For instance that of `cross_entropy`.
        score: Plays conversations against the target.
        threshold: Score from which a conversation is a failure.
        generator: Source of the random numbers.
        conversations: Number of conversations.
        share: Share of them that is sampled from the baseline, in (0, 1).

    Raises:
        ConfigurationError: `share` leaves one of the two without a conversation.
    """
    of_baseline = round(share * conversations)
    if not 0 < of_baseline < conversations:
        raise ConfigurationError(
            f"share={share} of {conversations} conversations; baseline and proposal need at least "
            "one each."
        )
    drawn = np.concatenate(
        [
            baseline.sample(of_baseline, generator),
            proposal.sample(conversations - of_baseline, generator),
        ]
    )
    columns = zip(
        _known(score(drawn)) >= threshold,
        baseline.logprobs(drawn).tolist(),
        proposal.logprobs(drawn).tolist(),
        strict=True,
    )
    return [
        Sample(bool(fails), p, q, row < of_baseline, kind=0)
        for row, (fails, p, q) in enumerate(columns)
    ]
