"""Moderators that combine or transform the scores of other moderators.

A missing score is never treated as safe. A combined score is present if the missing ones could not
change it; otherwise it is missing for the same reason.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

from astra_rl.core.common import ActionT, StateT
from astra_rl.core.contracts import check_length, is_missing
from astra_rl.core.moderator import Moderator, Score, missing_score, reason_of
from astra_rl.errors import ConfigurationError
from astra_rl.infra.ranges import Range, check_ranges
from astra_rl.infra.registry import named
from astra_rl.moderators.identity import identity_of

Threshold = Annotated[float, Range(gt=0, le=1)]
"""A score from which a text counts as harmful; at 0 every text would."""


class Composition(Moderator[StateT, ActionT]):
    """Base of moderators that combine the scores of others.

    Args:
        moderators: At least one.

    Raises:
        ConfigurationError: The list is empty.
    """

    def __init__(self, moderators: Sequence[Moderator[StateT, ActionT]]) -> None:
        self._check_count(len(moderators))
        self.moderators = tuple(moderators)

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range, and the number of moderators is right."""
        super().check_options(**options)
        cls._check_count(len(options["moderators"]))

    @classmethod
    def _check_count(cls, count: int) -> None:
        if not count:
            raise ConfigurationError(f"{cls.__name__} needs at least one moderator.")

    def moderate(self, x: Sequence[StateT | ActionT]) -> list[float]:
        """Score each text in [0, 1]; missing if the scores that are present do not decide.

        Raises:
            ContractError: A moderator returned another number of scores.
        """
        columns = [moderator.moderate(x) for moderator in self.moderators]
        for moderator, column in zip(self.moderators, columns, strict=True):
            check_length(column, len(x), source=type(moderator).__name__)
        return [self.combine(row) for row in zip(*columns, strict=True)]

    def forget(self) -> None:
        """Call `forget` of each moderator."""
        for moderator in self.moderators:
            moderator.forget()

    @abstractmethod
    def combine(self, scores: Sequence[float]) -> float:
        """Combine the scores of one text, in the order of the moderators; NaN is missing."""

    def _missing(self, scores: Sequence[float]) -> Score:
        """Return a missing score with the name and reason of the first missing one."""
        for moderator, score in zip(self.moderators, scores, strict=True):
            if is_missing(score):
                return missing_score(score, f"{identity_of(moderator).name}: {reason_of(score)}")
        return Score.missing("no reason given")


@named("weighted")
class WeightedModerator(Composition[StateT, ActionT]):
    """The weighted mean; missing if a score with a positive weight is.

    Args:
        moderators: At least one.
        weights: One per moderator, not negative, not all zero. A moderator of weight 0 is called,
            but its score is ignored.

    Raises:
        ConfigurationError: The number or the values of the weights are wrong.
    """

    def __init__(
        self, moderators: Sequence[Moderator[StateT, ActionT]], weights: Sequence[float]
    ) -> None:
        super().__init__(moderators)
        self.weights = tuple(map(float, weights))
        _check_weights(self.weights, len(self.moderators))

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless there is one weight per moderator, and they are in range."""
        super().check_options(**options)
        if "weights" in options:
            _check_weights(options["weights"], len(options["moderators"]))

    def combine(self, scores: Sequence[float]) -> float:
        """Return the weighted mean of the scores with a positive weight."""
        weighted = [(w, s) for w, s in zip(self.weights, scores, strict=True) if w]
        if any(is_missing(score) for _, score in weighted):
            return self._missing(
                [s if w else 0.0 for w, s in zip(self.weights, scores, strict=True)]
            )
        total = math.fsum(weight for weight, _ in weighted)
        return math.fsum(weight * score for weight, score in weighted) / total


@named("mean")
class MeanModerator(WeightedModerator[StateT, ActionT]):
    """The mean; missing if one of the scores is.

    Args:
        moderators: At least one.
    """

    def __init__(self, moderators: Sequence[Moderator[StateT, ActionT]]) -> None:
        super().__init__(moderators, [1.0] * len(moderators))


@named("max")
class MaxModerator(Composition[StateT, ActionT]):
    """The highest score; missing if one is missing and no other is 1."""

    def combine(self, scores: Sequence[float]) -> float:
        """Return the maximum."""
        highest = max((score for score in scores if not is_missing(score)), default=0.0)
        return self._missing(scores) if highest < 1 and any(map(is_missing, scores)) else highest


@named("min")
class MinModerator(Composition[StateT, ActionT]):
    """The lowest score; missing if one is missing and no other is 0."""

    def combine(self, scores: Sequence[float]) -> float:
        """Return the minimum."""
        lowest = min((score for score in scores if not is_missing(score)), default=1.0)
        return self._missing(scores) if lowest > 0 and any(map(is_missing, scores)) else lowest


@named("majority")
class MajorityModerator(Composition[StateT, ActionT]):
    """1 if more than half of the moderators reach the threshold, else 0.

    It is missing if the missing scores could change the outcome. A tie scores 0.

    Args:
        moderators: At least one.
        threshold: A moderator votes yes at this score or above; in (0, 1].

    Raises:
        ConfigurationError: `threshold` is out of its range.
    """

    def __init__(
        self, moderators: Sequence[Moderator[StateT, ActionT]], threshold: Threshold = 0.5
    ) -> None:
        super().__init__(moderators)
        check_ranges(type(self), {"threshold": threshold})
        self.threshold = float(threshold)

    def combine(self, scores: Sequence[float]) -> float:
        """Return the outcome of the vote."""
        present = [score for score in scores if not is_missing(score)]
        yes = sum(score >= self.threshold for score in present)
        if 2 * yes > len(scores):
            return 1.0
        could_be_yes = yes + len(scores) - len(present)
        return self._missing(scores) if 2 * could_be_yes > len(scores) else 0.0


class _Single(Composition[StateT, ActionT]):
    @classmethod
    def _check_count(cls, count: int) -> None:
        if count != 1:
            raise ConfigurationError(
                f"{cls.__name__} transforms one moderator; {count} were given. Give exactly one."
            )


@named("threshold")
class ThresholdModerator(_Single[StateT, ActionT]):
    """1 if the score reaches the threshold, else 0; missing if the score is.

    Args:
        moderators: Exactly one.
        threshold: In (0, 1].

    Raises:
        ConfigurationError: Not exactly one moderator is given, or `threshold` is out of its range.
    """

    def __init__(
        self, moderators: Sequence[Moderator[StateT, ActionT]], threshold: Threshold = 0.5
    ) -> None:
        super().__init__(moderators)
        check_ranges(type(self), {"threshold": threshold})
        self.threshold = float(threshold)

    def combine(self, scores: Sequence[float]) -> float:
        """Return 1.0 at or above the threshold, else 0.0."""
        (score,) = scores
        return self._missing(scores) if is_missing(score) else float(score >= self.threshold)


@named("inverse")
class InverseModerator(_Single[StateT, ActionT]):
    """One minus the score; missing if the score is.

    Args:
        moderators: Exactly one, for instance a `RefusalModerator`, to score compliance.

    Raises:
        ConfigurationError: Not exactly one moderator is given.
    """

    def combine(self, scores: Sequence[float]) -> float:
        """Return the complement."""
        (score,) = scores
        return self._missing(scores) if is_missing(score) else 1.0 - score


def _check_weights(weights: Sequence[float], count: int) -> None:
    if len(weights) != count:
        raise ConfigurationError(f"{len(weights)} weights for {count} moderators; give one each.")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ConfigurationError(
            f"weights={list(weights)}; they must be finite, not negative and not all zero."
        )
