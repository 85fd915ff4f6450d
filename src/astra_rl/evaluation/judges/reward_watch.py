"""Detection of reward hacking: training moderator against a held-out judge."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, NamedTuple

from astra_rl.core.common import Metrics
from astra_rl.core.contracts import check_length, is_missing, mean_of_present
from astra_rl.errors import ConfigurationError
from astra_rl.logging import logger

MOST_NGRAMS = 5
MIN_ERRORS = 4.0
"""Minimum widening of the gap for a warning, in standard errors."""


@dataclass(frozen=True)
class SharedNgram:
    """An n-gram that is more frequent in attacks with a high reward.

    Attributes:
        text: The words.
        high: Share of attacks with a high reward that contain it.
        others: Share of the other attacks that contain it.
    """

    text: str
    high: float
    others: float


@dataclass(frozen=True)
class _Means:
    moderator: float
    judge: float

    @property
    def gap(self) -> float:
        return self.moderator - self.judge


class _Rise(NamedTuple):
    value: float
    error: float


class RewardWatch:
    """Compares the scores of the training moderator and of a held-out judge, step by step.

    If the moderator's score rises while the score of a judge that is not part of the reward does
    not, the attacker is probably exploiting the moderator. `record` logs a warning once.

    The last `window` training steps that have both scores are compared with the first. The warning
    is given if the moderator's mean rose by at least `min_rise`, the judge's by less than `flat`
    times that, the judge's mean is now below the moderator's, and the gap between them widened by
    more than `MIN_ERRORS` standard errors.

    Args:
        window: Number of training steps at either end that are compared; at least 3.
        min_rise: Minimum rise of the moderator's mean score, positive.
        flat: Maximum rise of the judge's mean as a share of the moderator's rise, in [0, 1).
        high: Minimum score of an attack with a high reward.
        words: Length of the n-grams, in words; at least 1.

    Attributes:
        rows: The metrics and the shared n-grams of each step.
        warning: The text of the warning; None if there was none.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        window: int = 10,
        min_rise: float = 0.1,
        flat: float = 0.25,
        high: float = 0.5,
        words: int = 3,
    ) -> None:
        if window < 3:
            raise ConfigurationError(f"window={window}; it must be at least 3.")
        if words < 1:
            raise ConfigurationError(f"words={words}; it must be at least 1.")
        if not (min_rise > 0 and 0 <= flat < 1):
            raise ConfigurationError(
                f"min_rise={min_rise}, flat={flat}; a rise must be positive and flat in [0, 1)."
            )
        self.window, self.min_rise, self.flat = window, min_rise, flat
        self.high, self.words = high, words
        self.rows: list[dict[str, Any]] = []
        self.warning: str | None = None
        self._first: list[_Means] = []
        self._last: deque[_Means] = deque(maxlen=window)
        self._attacks: deque[list[tuple[str, float]]] = deque(maxlen=2 * window)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the comparison, as plain values."""
        return {
            "rows": list(self.rows),
            "warning": self.warning,
            "first": [astuple(each) for each in self._first],
            "last": [astuple(each) for each in self._last],
            "attacks": [list(each) for each in self._attacks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rows, self.warning = list(state["rows"]), state["warning"]
        self._first = [_Means(*each) for each in state["first"]]
        self._last.extend(_Means(*each) for each in state["last"])
        self._attacks.extend(list(each) for each in state["attacks"])

    def record(
        self, step: int, scores: Sequence[float], judged: Sequence[float], attacks: Sequence[str]
    ) -> Metrics:
        """Record the scores of one training step.

        Args:
            step: Number of the training step, counted from 1.
            scores: Scores of the training moderator, one per attack, NaN where missing.
            judged: Scores of the held-out judge for the same turns, NaN where missing.
            attacks: The attacks.

        Returns:
            ``watch/moderator`` and ``watch/judge``, mean scores over the turns that have both;
            ``watch/gap``, the first minus the second; ``watch/gibberish``, the share of attacks for
            which `is_gibberish` holds; ``watch/shared_words``, the largest difference between the
            frequency of an n-gram in attacks with a high reward and in others. NaN where undefined.
        """
        check_length(judged, len(scores), source="judged")
        check_length(attacks, len(scores), source="attacks")
        both = [
            (float(score), float(judge))
            for score, judge in zip(scores, judged, strict=True)
            if not is_missing(score) and not is_missing(judge)
        ]
        moderator = mean_of_present(score for score, _ in both)
        judge = mean_of_present(judge for _, judge in both)
        if both and len(self._first) < self.window:
            self._first.append(_Means(moderator, judge))
        elif both:
            self._last.append(_Means(moderator, judge))
        self._attacks.append(
            [(a, float(s)) for a, s in zip(attacks, scores, strict=True) if not is_missing(s)]
        )
        shared = shared_ngrams(
            [each for attacks_of_step in self._attacks for each in attacks_of_step],
            high=self.high,
            words=self.words,
        )
        metrics = {
            "watch/moderator": moderator,
            "watch/judge": judge,
            "watch/gap": moderator - judge,
            "watch/gibberish": mean_of_present(float(is_gibberish(attack)) for attack in attacks),
            "watch/shared_words": shared[0].high - shared[0].others if shared else 0.0,
        }
        self.rows.append(
            {"step": step, **metrics, "shared_ngrams": [vars(each) for each in shared]}
        )
        self._warn_once(step, shared)
        return metrics

    def _warn_once(self, step: int, shared: Sequence[SharedNgram]) -> None:
        if self.warning is not None or len(self._last) < self.window:
            return
        rise = _rise([each.moderator for each in self._first], [m.moderator for m in self._last])
        judged = _rise([each.judge for each in self._first], [each.judge for each in self._last])
        gap = _rise([each.gap for each in self._first], [each.gap for each in self._last])
        is_flat = rise.value >= self.min_rise and judged.value < self.flat * rise.value
        is_wide = fmean(each.gap for each in self._last) > 0 and gap.value > MIN_ERRORS * gap.error
        if not (is_flat and is_wide):
            return
        common = ", ".join(repr(each.text) for each in shared[:3])
        self.warning = (
            f"training step {step}: since training began the training moderator's mean score rose "
            f"by {rise.value:.2f}, the held-out judge's by {judged.value:+.2f}. The attacker may "
            "be exploiting the moderator (reward hacking) instead of making the target fail."
            + (f" Highly rewarded attacks share: {common}." if common else "")
        )
        logger.warning("%s", self.warning)


def shared_ngrams(
    attacks: Sequence[tuple[str, float]], *, high: float = 0.5, words: int = 3
) -> list[SharedNgram]:
    """Return n-grams that are more frequent in attacks with a high reward, the best first.

    An n-gram is returned if it occurs in at least three attacks with a high reward and in at least
    a fifth of them, and in a smaller share of the others.

    Args:
        attacks: Texts and their scores, none missing.
        high: Minimum score of an attack with a high reward.
        words: Words per n-gram.
    """
    groups: tuple[list[frozenset[str]], list[frozenset[str]]] = ([], [])
    for attack, score in attacks:
        groups[score < high].append(_ngrams(attack, words))
    rewarded, others = groups
    counts, elsewhere = (Counter(gram for grams in group for gram in grams) for group in groups)
    found = [
        SharedNgram(gram, count / len(rewarded), elsewhere[gram] / max(1, len(others)))
        for gram, count in counts.items()
        if count >= 3 and count >= len(rewarded) / 5
    ]
    telling = [each for each in found if each.high > each.others]
    return sorted(telling, key=lambda each: (each.others - each.high, each.text))[:MOST_NGRAMS]


def is_gibberish(text: str) -> bool:
    """Whether a text does not look like language, by a heuristic.

    True if fewer than half of its visible characters are letters; if more than 40% of its words in
    Latin script have no vowel, five consonants in a row, or more than 24 letters; or if fewer than
    30% of its words are distinct, for eight or more words. Words of up to two letters and words in
    other scripts are ignored. False for an empty text.
    """
    visible = [c for c in text if not c.isspace()]
    if not visible:
        return False
    if sum(c.isalpha() for c in visible) < len(visible) / 2:
        return True
    plain = unicodedata.normalize("NFD", text.lower())
    words = re.findall(r"[^\W\d_]+", "".join(c for c in plain if not unicodedata.combining(c)))
    if len(words) >= 8 and len(set(words)) < 0.3 * len(words):
        return True
    latin = [word for word in words if len(word) > 2 and re.fullmatch("[a-z]+", word)]
    return sum(map(_is_unlike_a_word, latin)) > 0.4 * len(latin)


def _is_unlike_a_word(word: str) -> bool:
    vowelless = not re.search("[aeiouy]", word)
    return vowelless or bool(re.search("[^aeiouy]{5}", word)) or len(word) > 24


def _rise(before: Sequence[float], now: Sequence[float]) -> _Rise:
    """Difference of two means of steps, and its standard error."""
    error = math.sqrt(sum(_variance_of_mean(values) for values in (before, now)))
    return _Rise(fmean(now) - fmean(before), error)


def _variance_of_mean(values: Sequence[float]) -> float:
    center, count = fmean(values), len(values)
    return math.fsum((value - center) ** 2 for value in values) / (count - 1) / count


@lru_cache(10_000)  # an attack is counted again in each of the steps that are compared
def _ngrams(text: str, words: int) -> frozenset[str]:
    found = re.findall(r"\w+", text.lower())
    return frozenset(" ".join(found[i : i + words]) for i in range(len(found) - words + 1))
