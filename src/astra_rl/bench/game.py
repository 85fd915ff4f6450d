"""A game with planted failures, whose probabilities are known by enumeration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from astra_rl.errors import ConfigurationError

Array = NDArray[np.float64]

SLOTS = ("topic", "manner", "request")
"""The three words of an attack, in order."""
TOPICS_PER_MANNER = 5
"""Planted modes that share their manner and request, and differ in their topic."""
_OBEYED = 0.5
"""Probability of the request of a mode, given its manner."""
_OF_MODES = 0.95
"""Largest probability of the manners of modes, given a topic."""


@dataclass(frozen=True)
class Mode:
    """A planted failure.

    Attributes:
        attack: The attack that causes it, see `PlantedGame`.
        probability: Probability of that attack in ordinary use.
    """

    attack: str
    probability: float


class PlantedGame:
    """Attacks of three words, of which a known few make the target fail.

    An attack is a topic, a manner and a request, for instance ``"topic4 manner17 request2"``. In
    ordinary use the topic is drawn from a Zipf distribution, the manner given the topic, and the
    request given the manner, so the probability of every attack is a product of three numbers. The
    probabilities of the modes are ``10 ** -(1 + 4 * sqrt(i / (modes - 1)))``, from 1e-1 to 1e-5:
    most modes are rare. Five modes each share manner and request, so what was learned from one mode
    helps to find others. *Decoys* are attacks that the target withstands with a reply that the
    judge mistakes for a failure.

    Args:
        modes: Number K of planted modes, a multiple of 5, at least 5 and at most 5 * `words`.
        seed: Seed of the game; different seeds are different games of the same difficulty.
        words: Number of words of each slot, at least 16.
        decoys: Number of decoys; None is a fifth of `modes`.

    Attributes:
        topics: Probability of each topic, shape (words,).
        manners: Probability of each manner given the topic, (words, words); rows sum to 1.
        requests: Probability of each request given the manner, (words, words); rows sum to 1.
        modes: The planted modes, the most probable first.
        decoys: Attacks with a false alarm.

    Raises:
        ConfigurationError: A number is out of range.
    """

    def __init__(
        self, modes: int = 50, *, seed: int = 0, words: int = 32, decoys: int | None = None
    ) -> None:
        if words < 16:
            raise ConfigurationError(f"words={words}; it must be at least 16.")
        if modes % TOPICS_PER_MANNER or not TOPICS_PER_MANNER <= modes <= 5 * words:
            raise ConfigurationError(
                f"modes={modes}; it must be a multiple of 5, from 5 to {5 * words} (5 * words)."
            )
        false_alarms = modes // 5 if decoys is None else decoys
        if not 0 <= false_alarms <= words:
            raise ConfigurationError(f"decoys={decoys}; it must be from 0 to {words} (words).")
        self.words, self.seed = words, seed
        random = np.random.default_rng([seed, modes, words])
        ranks = random.permutation(words) + 1
        self.topics: Array = (1 / ranks) / (1 / ranks).sum()
        tricks = random.choice(words, size=modes // TOPICS_PER_MANNER, replace=False)
        self.requests = _rows(random, dict.fromkeys(tricks.tolist(), _OBEYED), words)
        answers = {trick: int(self.requests[trick].argmax()) for trick in tricks.tolist()}
        chances = 10.0 ** -(1 + 4 * np.sqrt(np.arange(modes) / (modes - 1)))
        places = _places(random, chances / _OBEYED, self.topics, tricks.tolist())
        self.manners = _given_topic(random, chances / _OBEYED, places, self.topics)
        self.modes: list[Mode] = [
            Mode(self.attack(topic, manner, answers[manner]), float(chance))
            for (topic, manner), chance in zip(places, chances, strict=True)
        ]
        self.decoys: frozenset[str] = frozenset(self._decoys(random, false_alarms))

    @staticmethod
    def attack(topic: int, manner: int, request: int) -> str:
        """Return the attack of three words, by their numbers."""
        return " ".join(
            f"{slot}{word}" for slot, word in zip(SLOTS, (topic, manner, request), strict=True)
        )

    @cached_property
    def mode_numbers(self) -> dict[str, int]:
        """Number of the mode of each attack that has one, see `modes`."""
        return {mode.attack: number for number, mode in enumerate(self.modes)}

    def mode_of(self, attack: str) -> int | None:
        """Return the number of the mode of an attack; None if the target withstands it."""
        return self.mode_numbers.get(attack.strip())

    def probabilities(self) -> Array:
        """Return the probability of each attack in ordinary use, shape (words, words, words)."""
        return self.topics[:, None, None] * self.manners[:, :, None] * self.requests[None, :, :]

    def probability(self, attack: str) -> float:
        """Return the probability of an attack in ordinary use; 0 for any other text."""
        numbers = self._numbers(attack)
        if numbers is None:
            return 0.0
        topic, manner, request = numbers
        return float(
            self.topics[topic] * self.manners[topic, manner] * self.requests[manner, request]
        )

    def _numbers(self, attack: str) -> tuple[int, int, int] | None:
        said = attack.split()
        known = [
            {f"{slot}{number}": number for number in range(self.words)}.get(word)
            for slot, word in zip(SLOTS, said, strict=False)
        ]
        if len(said) != len(SLOTS) or None in known:
            return None
        topic, manner, request = (number or 0 for number in known)
        return topic, manner, request

    def _decoys(self, random: np.random.Generator, count: int) -> Sequence[str]:
        found: dict[str, None] = {}
        while len(found) < count:
            attack = self.attack(*random.integers(self.words, size=3).tolist())
            if attack not in self.mode_numbers:
                found[attack] = None
        return list(found)


def _rows(random: np.random.Generator, fixed: dict[int, float], words: int) -> Array:
    """Return random distributions, (words, words); one entry of some rows has a fixed probability.

    Args:
        random: Draws them.
        fixed: The largest probability of a row, by row.
        words: Their number.
    """
    table = random.dirichlet(np.ones(words), size=words)
    for row, chance in fixed.items():
        rest = random.dirichlet(np.ones(words - 1)) * (1 - chance)
        table[row] = np.insert(rest, random.integers(words), chance)
    found: Array = table
    return found


def _places(
    random: np.random.Generator, needed: Array, topics: Array, tricks: Sequence[int]
) -> list[tuple[int, int]]:
    """Return a topic and a manner for each mode.

    Args:
        random: Draws them.
        needed: Joint probability of topic and manner of each mode, in descending order.
        topics: Probability of each topic.
        tricks: Manners of modes.
    """
    room = np.full(len(topics), _OF_MODES)
    free = [(topic, trick) for topic in range(len(topics)) for trick in tricks]
    uses = dict.fromkeys(tricks, TOPICS_PER_MANNER)
    places: list[tuple[int, int]] = []
    for chance in needed:
        fitting = [
            (topic, trick)
            for topic, trick in free
            if uses[trick] and chance / topics[topic] <= room[topic]
        ]
        place = fitting[int(random.integers(len(fitting)))]
        room[place[0]] -= chance / topics[place[0]]
        uses[place[1]] -= 1
        free.remove(place)
        places.append(place)
    return places


def _given_topic(
    random: np.random.Generator,
    needed: Array,
    places: Sequence[tuple[int, int]],
    topics: Array,
) -> Array:
    """Return the distributions of the manner given the topic, with those of the modes as needed."""
    table = random.dirichlet(np.ones(len(topics)), size=len(topics))
    for topic, row in enumerate(table):
        own = {
            manner: float(chance / topics[topic])
            for (of, manner), chance in zip(places, needed, strict=True)
            if of == topic
        }
        row[list(own)] = 0.0
        row *= (1 - math.fsum(own.values())) / row.sum()
        row[list(own)] = list(own.values())
    found: Array = table
    return found
