"""Interface to moderators, and the scores that they return."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic

from astra_rl.core.arguments import RecordsArguments
from astra_rl.core.common import ActionT, StateT
from astra_rl.core.text import NotSent
from astra_rl.core.weights import weights_of
from astra_rl.infra.ranges import check_ranges
from astra_rl.infra.redaction import names_credential

NOT_IDENTITY = frozenset(
    {"batch_size", "calls", "device", "dtype", "max_entries", "max_retries", "prices", "timeout"}
)
"""Constructor arguments that are no part of a moderator's identity: they change how it runs, not
what it computes. A dtype is covered by the fingerprint of the weights."""

COVERED_BY_WEIGHTS = frozenset({"model", "tokenizer"})
"""Constructor arguments that `Moderator.identity_weights` covers, if they are kept as attributes of
these names."""


class Score(float):
    """A score, with the reason if it is missing.

    A missing score is NaN, so code that expects plain floats keeps working.

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
        """Return a missing score with this reason."""
        return cls(math.nan, reason)

    @classmethod
    def checked(cls, value: Any) -> Score:
        """Return `value` as a score; missing unless it is a finite number in [0, 1]."""
        if isinstance(value, NotSentScore):
            return value
        if isinstance(value, str | bytes | bool):  # parsing is the caller's responsibility
            return cls.missing("not a number")
        try:
            number = float(value)
        except OverflowError:
            return cls.missing("out of range")
        except (TypeError, ValueError):
            return cls.missing("not a number")
        if not math.isfinite(number):
            reason = value.reason if isinstance(value, Score) else None
            return cls.missing(reason or "not finite")
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
    """Return why a score is missing; None if it is present."""
    if math.isfinite(score):
        return None
    return (score.reason if isinstance(score, Score) else None) or "no reason given"


def count_missing(scores: Iterable[float]) -> Counter[str]:
    """Count the missing scores by reason."""
    return Counter(reason for score in scores if (reason := reason_of(score)) is not None)


def describe_missing(reasons: Mapping[str, int]) -> str:
    """Return for instance ``"12 unscored: 9 unparsable verdict, 3 out of range"``."""
    counts = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count} {reason}" for reason, count in counts)
    return f"{sum(reasons.values())} unscored" + (f": {listed}" if listed else "")


class Moderator(RecordsArguments, ABC, Generic[StateT, ActionT]):
    """Scores text for harm.

    A subclass defines `moderate`; everything else has a default.

    Attributes:
        texts_per_request: Texts per request of a moderator that calls a paid endpoint itself, for
            cost estimates; None if it calls none, or through a `Target` that is counted itself.
        takes_engine: Whether an inference engine can run its model: its class has the options
            ``model_id`` and ``engine``, an `astra_rl.models.engines.Engine`.
    """

    texts_per_request: ClassVar[int | None] = None
    takes_engine: ClassVar[bool] = False

    def __init__(self) -> None:
        """Take no arguments; a subclass with its own `__init__` need not call this."""

    @classmethod
    def scores_good_behavior(cls, **options: Any) -> bool:
        """Whether a high score means that the target behaved well, for instance that it refused.

        Such a moderator is used to measure over-refusal; elsewhere its use as the measure of harm
        is warned of.

        Args:
            options: Arguments of the constructor, without defaults.
        """
        return False

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options of the constructor are in range; called before models are loaded.

        The ranges are those of the annotations of the constructor, see `astra_rl.infra.ranges`.
        Override it for other requirements.

        Args:
            options: Keyword arguments of the constructor.

        Raises:
            ConfigurationError: One is out of range.
        """
        check_ranges(cls, options)

    @abstractmethod
    def moderate(self, x: Sequence[StateT | ActionT]) -> Sequence[float]:
        """Score each text in [0, 1]; higher is more harmful, NaN is missing.

        Texts of an episode are `astra_rl.core.text.Exchange` objects: strings with the attributes
        `context`, `attack` and `response`; of an agent with tools, the text is all that it wrote,
        its calls included (`astra_rl.core.messages.AgentReply.judged`). A missing score may be a
        ``Score.missing("why")``, so that the reasons are counted.
        """

    def forget(self) -> None:
        """Drop cached scores; a moderator that wraps others calls their `forget`.

        The last digits of a score may depend on the batch it was computed in. A run calls this at
        the end of each training step, so that a resumed run recomputes what the uninterrupted run
        computes.
        """

    @property
    def identity_stands_for(self) -> Moderator[Any, Any] | None:
        """The moderator whose scores these are; None for its own.

        A wrapper that changes no score (a cache, a time limit) returns the wrapped moderator and
        has its identity.
        """
        return None

    def identity_settings(self) -> Mapping[str, Any]:
        """Return all settings that may change a score; they are hashed into the identity.

        The default is the arguments of the constructor. An argument that is kept as an attribute of
        the same name counts with the attribute's current value. Left out are `NOT_IDENTITY`,
        credentials (by their names, such as ``api_key``), and `COVERED_BY_WEIGHTS` where such an
        attribute is kept. Override this where scores depend on more, or on less.
        """
        kept = vars(self)
        return {
            name: kept.get(name, value)
            for name, value in self.constructor_arguments().items()
            if name not in NOT_IDENTITY
            and not names_credential(name)
            and not (name in COVERED_BY_WEIGHTS and name in kept)
        }

    def identity_weights(self) -> str | None:
        """Return which model computes the scores; None if there is none.

        The default looks at the attributes of the moderator, `model` above all; see
        `astra_rl.core.weights.weights_of`.
        """
        return weights_of(self)
