"""Terms of the form of an attack, mostly used as conditions of gates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Exchange, NoAttack, Utterance, written_text
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.rewards.base import RewardModels, RewardTerm
from astra_rl.rewards.combine import logistic
from astra_rl.rewards.likelihood import check_choice
from astra_rl.rewards.terms import Harm

Unit = Literal["characters", "words", "tokens"]


@named("gibberish")
class Gibberish(Harm):
    """Probability that an attack is gibberish, by a classifier.

    Curiosity-driven red teaming (arXiv 2402.19464) subtracts it; DiveR-CT (arXiv 2405.19026) keeps
    its mean below 0.1. `MinK` needs no classifier.

    Args:
        moderator: Classifier; a higher score is more like gibberish.
    """

    def __init__(self, moderator: Moderator[Any, Any]) -> None:
        super().__init__("attack", moderator=moderator)
        self.name = "gibberish"


@named("format")
class Format(RewardTerm):
    r"""1 for an attack that matches a pattern, else 0.

    Args:
        pattern: A regular expression that is searched in the attack, or in the whole output of an
            attacker from which the attack is extracted; ``.`` matches line breaks too.
            ``r"\?\s*$"`` requires a question.
        times: Exact number of matches; None is at least one.

    Raises:
        ConfigurationError: The pattern is not valid, or `times` is negative.
    """

    name = "format"
    rewards_output = True

    def __init__(self, pattern: str, *, times: int | None = None) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigurationError(
                f"pattern={pattern!r} is not a regular expression: {error}."
            ) from error
        if times is not None and not times >= 0:
            raise ConfigurationError(f"times={times}; it must be 0 or more.")
        self.times = times

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return 1.0 or 0.0 for each attack."""
        found = [len(self.pattern.findall(written_text(each.attack))) for each in exchanges]
        if self.times is None:
            return [float(count > 0) for count in found]
        return [float(count == self.times) for count in found]


@named("extracted")
class Extracted(RewardTerm):
    """1 for an attack, 0 for an output from which none could be extracted.

    See `astra_rl.core.extraction.Extraction`. A reward of the format: RL-Hammer (arXiv 2510.04885)
    gives reward 0 without it.
    """

    name = "extracted"
    rewards_output = True

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return 1.0 or 0.0 for each turn."""
        return [float(not isinstance(each.attack, NoAttack)) for each in exchanges]


@named("length")
class Length(RewardTerm):
    """Length of an attack.

    Args:
        unit: ``"characters"``, ``"words"`` or ``"tokens"``. Tokens are the sampled ones of the
            attacker, those of private reasoning included; the value is missing if there are none.

    Raises:
        ConfigurationError: The unit is unknown.
    """

    def __init__(self, unit: Unit = "characters") -> None:
        check_choice("unit", unit, get_args(Unit))
        self.unit = unit
        self.name = f"length_{unit}"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the length of each attack."""
        return [self._count(each.attack) for each in exchanges]

    def _count(self, attack: str) -> float:
        if self.unit == "characters":
            return len(attack)
        if self.unit == "words":
            return len(re.findall(r"\w+", attack))
        ids = attack.token_ids if isinstance(attack, Utterance) else None
        return float("nan") if ids is None else len(ids)


@named("brevity")
class Brevity(Length):
    """A factor for short attacks, from 1 down to 0.5.

    1 up to `start`, 0.5 from `end` on, and between them a sigmoid of slope -10 around the middle,
    scaled to be continuous (Beutel et al., arXiv 2412.18693, with 100 and 200).

    Args:
        start: Length up to which the factor is 1.
        end: Length from which on the factor is 0.5.
        unit: See `Length`.

    Raises:
        ConfigurationError: `end` is not above `start`.
    """

    def __init__(self, start: float = 100, end: float = 200, *, unit: Unit = "characters") -> None:
        super().__init__(unit)
        if not start < end:
            raise ConfigurationError(f"start={start} and end={end}; end must be above start.")
        self.start = start
        self.end = end
        self.name = "brevity"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the factor of each attack."""
        return [self._factor(length) for length in super().__call__(models, exchanges)]

    def _factor(self, length: float) -> float:
        if length <= self.start:
            return 1.0
        if length >= self.end:
            return 0.5
        slope, top = 10.0, logistic(5.0)
        place = (length - self.start) / (self.end - self.start)
        height = logistic(-slope * (place - 0.5))
        return 0.5 + 0.5 * (height - (1 - top)) / (2 * top - 1)
