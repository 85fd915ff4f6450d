"""Several moderators as one, and one seen differently.

A score that is missing is never counted as safe. A composition decides without it only where it
could not change the outcome; otherwise its own score is missing too, for the same reason.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

from astra_rl.core.common import ActionT, StateT
from astra_rl.core.contracts import check_length, is_missing
from astra_rl.core.moderator import Moderator, Score, missing_score, reason_of
from astra_rl.errors import ConfigurationError
from astra_rl.moderators.identity import identity_of


class Composition(Moderator[StateT, ActionT]):
    """Asks each of several moderators about all texts, and makes one score of theirs.

    Args:
        moderators: At least one.

    Raises:
        ConfigurationError: There is none.
    """

    def __init__(self, moderators: Sequence[Moderator[StateT, ActionT]]) -> None:
        self.moderators = tuple(moderators)
        if not self.moderators:
            raise ConfigurationError(f"{type(self).__name__} needs at least one moderator.")

    def moderate(self, x: Sequence[StateT | ActionT]) -> list[float]:
        """Score each text in [0, 1]; missing where the scores that are there do not decide.

        Raises:
            ContractError: A moderator returned another number of scores than it was asked for.
        """
        columns = [moderator.moderate(x) for moderator in self.moderators]
        for moderator, column in zip(self.moderators, columns, strict=True):
            check_length(column, len(x), source=type(moderator).__name__)
        return [self.combine(row) for row in zip(*columns, strict=True)]

    def forget(self) -> None:
        """Let each of them forget."""
        for moderator in self.moderators:
            moderator.forget()

    @abstractmethod
    def combine(self, scores: Sequence[float]) -> float:
        """Return one score for those of the moderators, in their order, NaN where missing."""

    def _missing(self, scores: Sequence[float]) -> Score:
        """Return a missing score that says which moderator could not score, and why."""
        for moderator, score in zip(self.moderators, scores, strict=True):
            if is_missing(score):
                return missing_score(score, f"{identity_of(moderator).name}: {reason_of(score)}")
        return Score.missing("no reason given")


class WeightedModerator(Composition[StateT, ActionT]):
    """The weighted mean. Without one of the scores it is missing.

    Args:
        moderators: At least one.
        weights: One for each, not negative, not all zero. A weight of 0 asks a moderator without
            listening to it, missing or not.

    Raises:
        ConfigurationError: The weights are not that.
    """

    def __init__(
        self, moderators: Sequence[Moderator[StateT, ActionT]], weights: Sequence[float]
    ) -> None:
        super().__init__(moderators)
        self.weights = tuple(map(float, weights))
        if len(self.weights) != len(self.moderators):
            raise ConfigurationError(
                f"{len(self.weights)} weights for {len(self.moderators)} moderators; give one each."
            )
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise ConfigurationError(
                f"weights={list(self.weights)}; they must not be negative, nor all zero."
            )

    def combine(self, scores: Sequence[float]) -> float:
        """Return the mean of the scores that have a weight."""
        heard = [(w, s) for w, s in zip(self.weights, scores, strict=True) if w]
        if any(is_missing(score) for _, score in heard):
            return self._missing(
                [s if w else 0.0 for w, s in zip(self.weights, scores, strict=True)]
            )
        total = math.fsum(weight for weight, _ in heard)
        return math.fsum(weight * score for weight, score in heard) / total


class MeanModerator(WeightedModerator[StateT, ActionT]):
    """The mean. Without one of the scores it is missing.

    Args:
        moderators: At least one.
    """

    def __init__(self, moderators: Sequence[Moderator[StateT, ActionT]]) -> None:
        super().__init__(moderators, [1.0] * len(moderators))


class MaxModerator(Composition[StateT, ActionT]):
    """The highest score. With one missing it is known only if another is 1."""

    def combine(self, scores: Sequence[float]) -> float:
        """Return the maximum."""
        highest = max((score for score in scores if not is_missing(score)), default=0.0)
        return self._missing(scores) if highest < 1 and any(map(is_missing, scores)) else highest


class MinModerator(Composition[StateT, ActionT]):
    """The lowest score. With one missing it is known only if another is 0."""

    def combine(self, scores: Sequence[float]) -> float:
        """Return the minimum."""
        lowest = min((score for score in scores if not is_missing(score)), default=1.0)
        return self._missing(scores) if lowest > 0 and any(map(is_missing, scores)) else lowest


class MajorityModerator(Composition[StateT, ActionT]):
    """1 if more than half of the moderators reach the threshold, else 0.

    With some missing it is known once those there make a majority, or no longer can be outvoted.
    Half of an even number is no majority.

    Args:
        moderators: At least one.
        threshold: Score in (0, 1] from which on a moderator votes yes.

    Raises:
        ConfigurationError: `threshold` is out of its range.
    """

    def __init__(
        self, moderators: Sequence[Moderator[StateT, ActionT]], threshold: float = 0.5
    ) -> None:
        super().__init__(moderators)
        self.threshold = _checked_threshold(threshold)

    def combine(self, scores: Sequence[float]) -> float:
        """Return the outcome of the vote."""
        present = [score for score in scores if not is_missing(score)]
        yes = sum(score >= self.threshold for score in present)
        if 2 * yes > len(scores):
            return 1.0
        could_be_yes = yes + len(scores) - len(present)
        return self._missing(scores) if 2 * could_be_yes > len(scores) else 0.0


class _Single(Composition[StateT, ActionT]):
    def __init__(self, moderators: Sequence[Moderator[StateT, ActionT]]) -> None:
        super().__init__(moderators)
        if len(self.moderators) != 1:
            raise ConfigurationError(
                f"{type(self).__name__} sees one moderator differently; {len(self.moderators)} "
                "were given."
            )


class ThresholdModerator(_Single[StateT, ActionT]):
    """1 where a moderator's score reaches the threshold, else 0; missing where that is.

    Args:
        moderators: Exactly one.
        threshold: In (0, 1].

    Raises:
        ConfigurationError: It is not one moderator, or `threshold` is out of its range.
    """

    def __init__(
        self, moderators: Sequence[Moderator[StateT, ActionT]], threshold: float = 0.5
    ) -> None:
        super().__init__(moderators)
        self.threshold = _checked_threshold(threshold)

    def combine(self, scores: Sequence[float]) -> float:
        """Return which side of the threshold the score is on."""
        (score,) = scores
        return self._missing(scores) if is_missing(score) else float(score >= self.threshold)


class InverseModerator(_Single[StateT, ActionT]):
    """One minus a moderator's score; missing where that is.

    Args:
        moderators: Exactly one, for instance a `RefusalModerator`, to look for compliance.

    Raises:
        ConfigurationError: It is not one moderator.
    """

    def combine(self, scores: Sequence[float]) -> float:
        """Return the complement."""
        (score,) = scores
        return self._missing(scores) if is_missing(score) else 1.0 - score


def _checked_threshold(threshold: float) -> float:
    if not 0 < threshold <= 1:
        raise ConfigurationError(
            f"threshold={threshold}; it must be above 0, where nothing is safe, and at most 1."
        )
    return float(threshold)
