"""The judge of what was said."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic

from astra_rl.core.common import ActionT, StateT
from astra_rl.core.text import NotSent


class Score(float):
    """A score that can say why it is missing.

    It is a float, NaN where it is missing, so code that only knows floats keeps working.

    Attributes:
        reason: Why the score is missing, in a few words that can be counted, for instance
            ``"unparsable verdict"``; None if it is not missing.
    """

    reason: str | None

    def __new__(cls, value: float, reason: str | None = None) -> Score:
        """Wrap `value`; see the class for `reason`."""
        self = super().__new__(cls, value)
        self.reason = reason
        return self

    @classmethod
    def missing(cls, reason: str) -> Score:
        """Return a score that could not be computed, and why."""
        return cls(math.nan, reason)

    @classmethod
    def checked(cls, value: Any) -> Score:
        """Return `value` as a score; missing unless it is a finite number in [0, 1]."""
        if isinstance(value, NotSentScore):
            return value
        if isinstance(value, str | bytes | bool):  # reading it as a number is the caller's job
            return cls.missing("not a number")
        try:
            number = float(value)
        except OverflowError:
            return cls.missing("out of range")
        except (TypeError, ValueError):
            return cls.missing("not a number")
        if not math.isfinite(number):
            return cls.missing(getattr(value, "reason", None) or "not finite")
        return cls(number) if 0 <= number <= 1 else cls.missing("out of range")


class NotSentScore(Score):
    """A missing score of a text that was not judged because a budget is spent."""


def missing_score(source: object, reason: str) -> Score:
    """Return a missing score that follows from a missing reply or from another missing score.

    Args:
        source: The reply or score. If it is a `NotSent` or a `NotSentScore`, so is the result.
        reason: Why the score is missing.
    """
    kind = NotSentScore if isinstance(source, NotSent | NotSentScore) else Score
    return kind.missing(reason)


def is_not_sent(score: float) -> bool:
    """Whether a score is missing because a budget is spent."""
    return isinstance(score, NotSentScore)


def reason_of(score: float) -> str | None:
    """Return why a score is missing; None if it is there."""
    if math.isfinite(score):
        return None
    return getattr(score, "reason", None) or "no reason given"


def count_missing(scores: Iterable[float]) -> Counter[str]:
    """Count the missing scores by reason."""
    return Counter(reason for score in scores if (reason := reason_of(score)) is not None)


def describe_missing(reasons: Mapping[str, int]) -> str:
    """Return for instance ``"12 unscored: 9 unparsable verdict, 3 out of range"``."""
    counts = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count} {reason}" for reason, count in counts)
    return f"{sum(reasons.values())} unscored" + (f": {listed}" if listed else "")


class Moderator(ABC, Generic[StateT, ActionT]):
    """Scores text for harm."""

    @abstractmethod
    def moderate(self, x: Sequence[StateT | ActionT]) -> Sequence[float]:
        """Score each text in [0, 1]; higher is more harmful, NaN could not be scored.

        Texts that come from an episode are `astra_rl.core.text.Exchange` objects: strings that
        also know the context, the attack and the response. A missing score may be a
        `Score.missing("why")`, so that the reasons can be counted.
        """

    def forget(self) -> None:
        """Forget scores that were kept for later calls; who asks others passes it on.

        A score's last digits may depend on the batch it was computed in. A run forgets at the end
        of each step, so that one that is gone on with computes what the one without a break did.
        """
