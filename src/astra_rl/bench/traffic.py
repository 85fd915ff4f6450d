"""Messages of ordinary use, with the exact probability of every message."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from astra_rl.errors import ConfigurationError

END = ""
"""In place of a word: the message ends."""

_Place = tuple[int, int, tuple[str, ...]]
"""Number of a branch, of its next slot, and the words that are left of the present slot."""


@dataclass(frozen=True)
class Branch:
    """Messages that are put together alike: one text from each slot, all equally likely.

    Attributes:
        name: Its name.
        probability: Probability of the branch in ordinary use.
        slots: The texts of each slot, of one word or more.
    """

    name: str
    probability: float
    slots: tuple[tuple[str, ...], ...]

    def sample(self, random: Random) -> str:
        """Return one of its messages."""
        return " ".join(random.choice(texts) for texts in self.slots)


class Traffic:
    """A mixture of branches.

    Args:
        branches: The branches; their probabilities sum to 1.

    Attributes:
        branches: The branches.

    Raises:
        ConfigurationError: The probabilities do not sum to 1, or a slot has no text.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        total = math.fsum(each.probability for each in branches)
        if abs(total - 1) > 1e-9:
            raise ConfigurationError(f"the probabilities of the branches sum to {total}, not to 1.")
        for each in branches:
            if not each.slots or not all(texts and all(texts) for texts in each.slots):
                raise ConfigurationError(f"branch {each.name!r} has an empty slot.")
        self.branches = tuple(branches)
        start: dict[_Place, float] = defaultdict(float)
        for number, branch in enumerate(self.branches):
            for place, weight in self._slot(number, 0):
                start[place] += branch.probability * weight
        self._places: dict[tuple[str, ...], Mapping[_Place, float]] = {(): start}
        self._next: dict[tuple[str, ...], dict[str, float]] = {}

    def words(self) -> list[str]:
        """Return all words, sorted."""
        slots = (texts for each in self.branches for texts in each.slots)
        return sorted({word for texts in slots for text in texts for word in text.split()})

    def longest(self) -> int:
        """Return the number of words of the longest message."""
        return max(
            sum(max(len(text.split()) for text in texts) for texts in each.slots)
            for each in self.branches
        )

    def sample(self, random: Random) -> str:
        """Return a message of ordinary use."""
        weights = [each.probability for each in self.branches]
        return random.choices(self.branches, weights)[0].sample(random)

    def next_words(self, before: tuple[str, ...]) -> Mapping[str, float]:
        """Return the probability of each next word, `END` included, after the words before.

        Empty if no message begins with these words.
        """
        if before not in self._next:
            weights: dict[str, float] = defaultdict(float)
            for (_, _, left), weight in self._after(before).items():
                weights[left[0] if left else END] += weight
            total = math.fsum(weights.values())
            self._next[before] = {word: weight / total for word, weight in weights.items()}
        return self._next[before]

    def log_probability(self, message: str) -> float:
        """Return the log-probability of a message, in nats; minus infinity if it has none."""
        words = (*message.split(), END)
        total = 0.0
        for at, word in enumerate(words):
            chance = self.next_words(words[:at]).get(word, 0.0)
            if not chance:
                return -math.inf
            total += math.log(chance)
        return total

    def _after(self, before: tuple[str, ...]) -> Mapping[_Place, float]:
        """Return the places after these words; their weights sum to the probability of the words.

        This is the forward algorithm of hidden Markov models.
        """
        if before not in self._places:
            places: dict[_Place, float] = defaultdict(float)
            for (number, slot, left), weight in self._after(before[:-1]).items():
                if not left or left[0] != before[-1]:
                    continue
                if len(left) > 1:
                    places[number, slot, left[1:]] += weight
                    continue
                for place, share in self._slot(number, slot):
                    places[place] += weight * share
            self._places[before] = places
        return self._places[before]

    def _slot(self, number: int, slot: int) -> Iterator[tuple[_Place, float]]:
        """Yield the places at the start of a slot of a branch, with their shares."""
        slots = self.branches[number].slots
        if slot == len(slots):
            yield (number, slot, ()), 1.0
            return
        for text in slots[slot]:
            yield (number, slot + 1, tuple(text.split())), 1 / len(slots[slot])
