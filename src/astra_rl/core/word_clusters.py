"""Groups of texts that share words, assigned one text at a time."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
        self._sizes = array("L")  # number of these words
        self._with: dict[int, array[int]] = {}  # clusters by word in a prefix of the first member

    def add(self, text: str) -> int:
        """Return the number of the cluster of a text; a new one has the next number from 0 on."""
        numbers = self._numbers
        words = frozenset(numbers.setdefault(each, len(numbers)) for each in word_set(text))
        found = self._cluster_of(words)
        if found is not None:
            return found
        self._first.append(array("L", words))
        self._sizes.append(len(words))
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
        known = [self._with[word] for word in self._rarest(words) if word in self._with]
        if not known:
            return None
        clusters, in_prefixes = _counted(np.concatenate(known), len(self._first))
        sizes = np.asarray(self._sizes)[clusters]
        enough = in_prefixes >= _least_in_prefixes(len(words), sizes, self.similarity)
        candidates = clusters[enough].tolist()
        return next((c for c in candidates if self._is_similar(words, self._first[c])), None)

    def _is_similar(self, words: frozenset[int], first: array[int]) -> bool:
        """Whether the `jaccard` similarity of two sets suffices, without building another set."""
        shared = len(words.intersection(first))
        union = len(words) + len(first) - shared
        return (shared / union if union else 1.0) >= self.similarity


def _counted(numbers: NDArray[Any], below: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the different numbers, in order, and how often each occurs; all are below a bound."""
    if len(numbers) < below:
        return np.unique(numbers, return_counts=True)
    counts = np.bincount(numbers.astype(np.intp))  # faster than sorting where there are many
    found = np.flatnonzero(counts)
    return found, counts[found]


def _prefix_words(words: frozenset[int], similarity: float) -> list[int]:
    """Return words of a set such that any two similar sets share one of them.

    This is prefix filtering (Bayardo, Ma and Srikant, WWW 2007): under a common order of words,
    sets without a common word in their prefixes have too few words left to be similar. It avoids
    comparing all pairs. The order is that of appearance, the newest first: common words are old.
    """
    in_rest = int(_least_shared(len(words), similarity)) - 1
    return sorted(words, reverse=True)[: len(words) - in_rest]


def _least_in_prefixes(size: int, others: NDArray[Any], similarity: float) -> NDArray[Any]:
    """Return the fewest words in both prefixes of a set and of a similar one, by the other's size.

    It is infinite for sizes that no similar set has. One of two prefixes ends first in the common
    order, and its shared words are in the other prefix too. So all other shared words are in the
    rest of its set, and that is at most as large as the rest of the larger set.
    """
    # |A & B| / |A | B| >= s exactly if |A & B| >= s (|A| + |B|) / (1 + s).
    needed = similarity / (1 + similarity) * (size + others) - 1e-9
    in_rest = _least_shared(np.maximum(size, others), similarity) - 1
    return np.where(needed <= np.minimum(size, others), needed - in_rest, np.inf)


def _least_shared(sizes: ArrayLike, similarity: float) -> NDArray[Any]:
    """Return the fewest words that sets of these sizes share with a similar one."""
    return np.maximum(1, np.ceil(similarity * np.asarray(sizes) - 1e-9))
