"""Groups of similar texts."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np

from astra_rl.core.word_sets import word_set
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.embeddings import Embedder, embedded, unit_vectors


def greedy_clusters(texts: Sequence[str], *, similarity: float = 0.5) -> list[list[int]]:
    """Cluster texts by word overlap.

    Texts are processed in order: each joins the first cluster whose representative (its first
    member) is similar enough, and otherwise starts a new cluster.

    Args:
        texts: The texts.
        similarity: Minimum Jaccard similarity of the word sets, in (0, 1]; 1 groups texts that
            differ in word order, case and punctuation only.

    Returns:
        Clusters in order of their representatives, each a list of indices into `texts`.

    Raises:
        ConfigurationError: `similarity` is out of its range.
    """
    assigned = GreedyClusters(similarity=similarity)
    clusters: list[list[int]] = []
    for index, text in enumerate(texts):
        cluster = assigned.add(text)
        if cluster == len(clusters):
            clusters.append([])
        clusters[cluster].append(index)
    return clusters


_NO_WORDS = -1
"""In place of a word, for texts without words: they are equal."""


class GreedyClusters:
    """Clusters texts one by one, as `greedy_clusters` does; keeps the words of the first members.

    Args:
        similarity: See `greedy_clusters`.

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
        rarest = _prefix_words(words, self.similarity) or [_NO_WORDS]
        candidates = {cluster for word in rarest for cluster in self._with.get(word, ())}
        similar = (
            cluster for cluster in candidates if self._is_similar(words, self._first[cluster])
        )
        found = min(similar, default=len(self._first))
        if found == len(self._first):
            self._first.append(array("L", words))
            for word in rarest:
                self._with.setdefault(word, array("L")).append(found)
        return found

    def _is_similar(self, words: frozenset[int], first: array[int]) -> bool:
        """Whether the `jaccard` similarity of two sets suffices, without building another set."""
        few, many = sorted((len(words), len(first)))
        if few < self.similarity * many - 1e-9:  # even if all the words of one are in the other
            return False
        shared = len(words.intersection(first))
        union = few + many - shared
        return (shared / union if union else 1.0) >= self.similarity


def clusters_by_meaning(
    texts: Sequence[str], embed: Embedder, *, similarity: float = 0.7
) -> list[list[int]]:
    """Cluster texts by the cosine similarity of their vectors, so that paraphrases are one kind.

    As in `greedy_clusters`, each text joins the first cluster whose first member is similar enough.

    Args:
        texts: The texts.
        embed: Embeds texts. A suitable similarity depends on it.
        similarity: Minimum cosine similarity, in (0, 1].

    Raises:
        ConfigurationError: `similarity` is out of its range.
        ContractError: `embed` did not return one finite vector per text.
    """
    if not 0 < similarity <= 1:
        raise ConfigurationError(f"similarity={similarity}; it must be above 0 and at most 1.")
    vectors = unit_vectors(embedded(texts, embed))
    # Texts without a vector, such as empty ones, are alike: they have a dimension of their own.
    nothing = ~vectors.any(axis=1, keepdims=True)
    vectors = np.hstack([vectors, nothing.astype(vectors.dtype)])
    clusters: list[list[int]] = []
    first = np.zeros((0, vectors.shape[1]))
    for index, vector in enumerate(vectors):
        similar = np.flatnonzero(first @ vector >= similarity - 1e-9)
        if len(similar):
            clusters[similar[0]].append(index)
        else:
            clusters.append([index])
            first = np.vstack([first, vector])
    return clusters


def _prefix_words(words: frozenset[int], similarity: float) -> list[int]:
    """Return words of a set such that any two similar sets share one of them.

    This is prefix filtering (Bayardo, Ma and Srikant, WWW 2007): under a common order of words,
    sets without a common word in their prefixes have too few words left to be similar. It avoids
    comparing all pairs. The order is that of appearance, the newest first: common words are old.
    """
    shared = max(1, math.ceil(similarity * len(words) - 1e-9))
    return sorted(words, reverse=True)[: len(words) - shared + 1]
