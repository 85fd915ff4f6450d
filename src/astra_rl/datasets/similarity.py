"""Which prompts say nearly the same, so that none is trained on and tested on.

Two texts are compared by the Jaccard similarity of their sets of words: the words they share among
the words that either has. Order, case, punctuation and width make no difference. Where a script
puts no spaces between words, pairs of neighbouring letters stand for words.
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
"""Similarity from which on two prompts are near-duplicates, unless another is asked for."""

# Han, kana, Thai, Lao, Myanmar and Khmer.
_UNSPACED = (
    r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_RUN = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+")
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}]")


def word_tokens(text: str) -> frozenset[str]:
    """Return the words by which a text is compared; a text without any is its own only word."""
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
    """Find all pairs of texts that are at least so similar.

    Exact, and without comparing all pairs: a hundred thousand prompts take seconds. Texts that
    nearly all share their words, such as one template filled in many times, take longer.

    Args:
        texts: What to compare.
        threshold: Least similarity, in (0, 1].

    Returns:
        Indices of each pair, the smaller first, as they are found.

    Raises:
        ConfigurationError: `threshold` is out of its range.
    """
    _check_threshold(threshold)
    return _similar_pairs([word_tokens(text) for text in texts], threshold)


def near_duplicate_groups(
    texts: Sequence[str], *, threshold: float = NEAR_DUPLICATE
) -> list[list[int]]:
    """Group texts so that near-duplicates are in one group, and those of near-duplicates too.

    Two texts of different groups are never near-duplicates of each other.

    Returns:
        Lists of ascending indices, in order of their first; a text without near-duplicates is
        alone.

    Raises:
        ConfigurationError: `threshold` is out of its range.
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

    Similar sets have one of their rarest words in common, so only sets that do are compared
    (prefix filtering: Bayardo, Ma and Srikant, WWW 2007). Sets come in order of size, so those
    already indexed are no larger, and fewer of their words need to be (Xiao et al., WWW 2008).
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
    """Return how many words to look at so that one is in common if a `shared` part is."""
    return size - max(1, math.ceil(shared * size - 1e-9)) + 1


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ConfigurationError(f"similarity={threshold}; it must be above 0 and at most 1.")
