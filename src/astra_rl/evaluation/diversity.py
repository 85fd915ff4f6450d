"""How many different things an attacker says, rather than one thing many times."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from astra_rl.errors import ConfigurationError
from astra_rl.rewards.terms import jaccard, word_set


def greedy_clusters(texts: Sequence[str], *, similarity: float = 0.5) -> list[list[int]]:
    """Group texts that use mostly the same words.

    Texts are taken in order: each joins the first cluster whose representative, its first member,
    shares enough words with it, and opens a cluster of its own otherwise.

    Args:
        texts: What to group.
        similarity: Least Jaccard similarity of the word sets, in (0, 1]; 1 groups texts that
            differ in word order, case and punctuation only.

    Returns:
        Clusters in order of their representatives, each a list of indices into `texts`.

    Raises:
        ConfigurationError: `similarity` is out of its range.
    """
    if not 0 < similarity <= 1:
        raise ConfigurationError(f"similarity={similarity}; it must be above 0 and at most 1.")
    word_sets = [word_set(text) for text in texts]
    frequency = Counter(word for words in word_sets for word in words)
    clusters: list[list[int]] = []
    clusters_with: dict[str, list[int]] = defaultdict(list)
    # Clusters are only ever added at the end, so equal word sets always end in the same one.
    cluster_of: dict[frozenset[str], int] = {}
    for index, words in enumerate(word_sets):
        if words not in cluster_of:
            rarest = _telling_words(words, frequency, similarity)
            similar = (
                cluster
                for cluster in {cluster for word in rarest for cluster in clusters_with[word]}
                if jaccard(words, word_sets[clusters[cluster][0]]) >= similarity
            )
            cluster_of[words] = min(similar, default=len(clusters))
            if cluster_of[words] == len(clusters):
                clusters.append([])
                for word in rarest:
                    clusters_with[word].append(len(clusters) - 1)
        clusters[cluster_of[words]].append(index)
    return clusters


def _telling_words(
    words: frozenset[str], frequency: Mapping[str, int], similarity: float
) -> list[str]:
    """Return so many of the rarest words that any two similar sets have one of theirs in common.

    Similar sets share at least this part of either. If they had no word in common among so many
    of the first in one order, what is left of them would be too little (prefix filtering: Bayardo,
    Ma and Srikant, WWW 2007). Comparing only such pairs avoids comparing all.
    """
    shared = max(1, math.ceil(similarity * len(words) - 1e-9))
    rarest = sorted(words, key=lambda word: (frequency[word], word))
    return rarest[: len(words) - shared + 1]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of different word n-grams among all of them; NaN when no text has `n` words.

    Near 0 all texts say the same, at 1 nothing is ever repeated. It falls as texts are added, so
    compare equal numbers of texts (Li et al., arXiv 1510.03055).

    Raises:
        ConfigurationError: `n` is below 1.
    """
    if n < 1:
        raise ConfigurationError(f"n={n}; it must be at least 1.")
    total = 0
    distinct = set()
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        total += len(grams)
        distinct.update(grams)
    return len(distinct) / total if total else math.nan
