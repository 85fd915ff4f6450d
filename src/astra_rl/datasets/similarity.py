"""Near-duplicate detection, to keep near-duplicates of training prompts out of test splits.

The similarity of two texts is the Jaccard index of their sets of words: the number of common words
divided by the number of distinct words in both. Word order, case, punctuation and character width
are ignored. For scripts without spaces between words, character bigrams replace words.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from astra_rl.core.word_sets import jaccard
from astra_rl.errors import ConfigurationError

NEAR_DUPLICATE = 0.7
"""Default similarity at or above which two prompts are near-duplicates."""

# Han, kana, Thai, Lao, Myanmar and Khmer.
_UNSPACED = (
    r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_RUN = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+")
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}]")


def word_tokens(text: str) -> frozenset[str]:
    """Return the set of words of a text; a text without words is its own only word."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words: set[str] = set()
    for run in _RUN.findall(folded):
        if len(run) > 2 and _IS_UNSPACED.match(run):
            words.update(run[start : start + 2] for start in range(len(run) - 1))
        else:
            words.add(run)
    return frozenset(words) or frozenset({folded.strip()})


def similarity(a: str, b: str) -> float:
    """Return the Jaccard similarity of the words of two texts, in [0, 1]."""
    return jaccard(word_tokens(a), word_tokens(b))


def near_duplicates(
    texts: Sequence[str], *, threshold: float = NEAR_DUPLICATE
) -> Iterator[tuple[int, int]]:
    """Find all pairs of texts with at least the given similarity.

    The result is exact, without comparing all pairs: a hundred thousand prompts take seconds. It is
    slower for texts that share most of their words, such as instances of one template.

    Args:
        texts: Texts to compare.
        threshold: Minimum similarity, in (0, 1].

    Returns:
        Iterator of index pairs, the smaller index first, in no particular order.

    Raises:
        ConfigurationError: `threshold` is out of range.
    """
    _check_threshold(threshold)
    return _similar_pairs([word_tokens(text) for text in texts], threshold)


def near_duplicate_groups(
    texts: Sequence[str], *, threshold: float = NEAR_DUPLICATE
) -> list[list[int]]:
    """Return the connected components of the near-duplicate relation.

    Texts of different groups are never near-duplicates of each other. For the arguments see
    `near_duplicates`.

    Returns:
        Lists of ascending indices, ordered by their first index. A text without near-duplicates
        forms a group of its own.

    Raises:
        ConfigurationError: `threshold` is out of range.
    """
    _check_threshold(threshold)
    positions: dict[frozenset[str], list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        positions[word_tokens(text)].append(index)
    different = list(positions)
    parent = list(range(len(different)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b in _similar_pairs(different, threshold):
        parent[root(a)] = root(b)
    groups: dict[int, list[int]] = defaultdict(list)
    for item, words in enumerate(different):
        groups[root(item)].extend(positions[words])
    return sorted(sorted(group) for group in groups.values())


def _similar_pairs(
    word_sets: Sequence[frozenset[str]], threshold: float
) -> Iterator[tuple[int, int]]:
    """Yield each pair of sets whose Jaccard similarity is at least `threshold`, once.

    Prefix filtering (Bayardo, Ma and Srikant, WWW 2007): sets of this similarity share one of
    their rarest words, so only such sets are compared. Sets are processed in order of size, so
    indexed sets are not larger and shorter prefixes are indexed (Xiao et al., WWW 2008).
    """
    frequency = Counter(word for words in word_sets for word in words)
    indexed: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(word_sets)), key=lambda each: len(word_sets[each])):
        words = word_sets[index]
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        smallest = threshold * len(words) - 1e-9
        candidates = {
            other
            for word in rarest[: _prefix(len(words), threshold)]
            for other in indexed[word]
            if len(word_sets[other]) >= smallest
        }
        for other in candidates:
            if jaccard(words, word_sets[other]) >= threshold:
                yield min(index, other), max(index, other)
        for word in rarest[: _prefix(len(words), 2 * threshold / (1 + threshold))]:
            indexed[word].append(index)


def _prefix(size: int, shared: float) -> int:
    """Return the prefix length: the number of rarest words of which one must be common."""
    return size - max(1, math.ceil(shared * size - 1e-9)) + 1


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ConfigurationError(f"similarity={threshold}; it must be in (0, 1].")
