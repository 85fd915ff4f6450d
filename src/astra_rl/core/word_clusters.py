"""Groups of texts that share words, assigned one text at a time."""

from __future__ import annotations

import math
from array import array

from astra_rl.core.word_sets import word_set
from astra_rl.errors import ConfigurationError

_NO_WORDS = -1
"""In place of a word, for texts without words: they are equal."""


class GreedyClusters:
    """Clusters texts one by one, by word overlap; keeps the words of the first members.

    A text joins the first cluster whose first member is similar enough, and otherwise starts a new
    one.

    Args:
        similarity: Minimum Jaccard similarity of the word sets, in (0, 1]; 1 groups texts that
            differ in word order, case and punctuation only.

    Raises:
        ConfigurationError: `similarity` is out of its range.
    """

    def __init__(self, *, similarity: float = 0.5) -> None:
        if not 0 < similarity <= 1:
            raise ConfigurationError(f"similarity={similarity}; it must be above 0 and at most 1.")
        self.similarity = similarity
        self._numbers: dict[str, int] = {}  # of words, in order of appearance
        self._first: list[array[int]] = []  # words of the first member of each cluster
        self._with: dict[int, array[int]] = {}  # clusters by word in a prefix of the first member

    def add(self, text: str) -> int:
        """Return the number of the cluster of a text; a new one has the next number from 0 on."""
        numbers = self._numbers
        words = frozenset(numbers.setdefault(each, len(numbers)) for each in word_set(text))
        found = self._cluster_of(words)
        if found is not None:
            return found
        self._first.append(array("L", words))
        for word in self._rarest(words):
            self._with.setdefault(word, array("L")).append(len(self._first) - 1)
        return len(self._first) - 1

    def find(self, text: str) -> int | None:
        """Return the number of the cluster that a text would join; None if it would be new."""
        words = word_set(text)
        new = words - self._numbers.keys()
        known = {word: self._numbers[word] for word in words - new}
        added = {word: len(self._numbers) + index for index, word in enumerate(new)}
        return self._cluster_of(frozenset({**known, **added}.values()))

    def _rarest(self, words: frozenset[int]) -> list[int]:
        return _prefix_words(words, self.similarity) or [_NO_WORDS]

    def _cluster_of(self, words: frozenset[int]) -> int | None:
        candidates = {
            cluster for word in self._rarest(words) for cluster in self._with.get(word, ())
        }
        # |A & B| / |A | B| >= s exactly if |A & B| >= s (|A| + |B|) / (1 + s).
        share, size = self.similarity / (1 + self.similarity), len(words)
        for cluster in sorted(candidates):
            first = self._first[cluster]
            needed = share * (size + len(first)) - 1e-9
            if needed <= size and needed <= len(first) and self._is_similar(words, first):
                return cluster
        return None

    def _is_similar(self, words: frozenset[int], first: array[int]) -> bool:
        """Whether the `jaccard` similarity of two sets suffices, without building another set."""
        shared = len(words.intersection(first))
        union = len(words) + len(first) - shared
        return (shared / union if union else 1.0) >= self.similarity


def _prefix_words(words: frozenset[int], similarity: float) -> list[int]:
    """Return words of a set such that any two similar sets share one of them.

    This is prefix filtering (Bayardo, Ma and Srikant, WWW 2007): under a common order of words,
    sets without a common word in their prefixes have too few words left to be similar. It avoids
    comparing all pairs. The order is that of appearance, the newest first: common words are old.
    """
    shared = max(1, math.ceil(similarity * len(words) - 1e-9))
    return sorted(words, reverse=True)[: len(words) - shared + 1]
