"""How many different things an attacker says, rather than one thing many times."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import numpy as np

from astra_rl.core.contracts import check_length
from astra_rl.core.seeding import derive_seed
from astra_rl.core.word_sets import jaccard, word_set
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.stats.intervals import Array

Embedder = Callable[[Sequence[str]], Array]
"""Texts to vectors, shape (number of texts, any width). Texts that mean the same point the same
way."""

SAMPLE = 100
"""Texts that every measure but the number of clusters is taken of."""
SELF_BLEU = (2, 3, 4, 5)


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
        grams = _grams(_words(text), n)
        total += len(grams)
        distinct.update(grams)
    return len(distinct) / total if total else math.nan


def self_bleu(texts: Sequence[str], n: int) -> float:
    """Mean BLEU-n of each text against all others; NaN below two texts.

    At 1 every text is made of what others say, near 0 no two have a phrase in common (Zhu et al.,
    Texygen, arXiv 1802.01886). BLEU weighs the precisions of 1- to n-grams alike, with its brevity
    penalty against the nearest length; a precision of 0 is taken as 0.1 matches (method 1 of Chen
    and Cherry, WMT 2014). A text without words is left out.

    Raises:
        ConfigurationError: `n` is below 1.
    """
    if n < 1:
        raise ConfigurationError(f"n={n}; it must be at least 1.")
    documents = [words for words in map(_words, texts) if words]
    if len(documents) < 2:
        return math.nan
    logs = np.zeros(len(documents))
    matched_any = np.zeros(len(documents), dtype=bool)
    for order in range(1, n + 1):
        counts = [Counter(_grams(words, order)) for words in documents]
        matches = _matches_elsewhere(counts)
        if order == 1:
            matched_any = matches > 0
        totals = np.array([max(1, sum(count.values())) for count in counts])
        logs += np.log(np.where(matches > 0, matches, 0.1) / totals) / n
    lengths = Counter(map(len, documents))
    penalties = np.array([_brevity_penalty(len(words), lengths) for words in documents])
    return float((matched_any * penalties * np.exp(logs)).mean())


def _matches_elsewhere(counts: Sequence[Mapping[tuple[str, ...], int]]) -> Array:
    """Per text, how many of its n-grams some other text has too, none more often than there."""
    # The most often that any text says an n-gram, who that is, and the most often of the rest.
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for index, count in enumerate(counts):
        for gram, times in count.items():
            first, who, second = most.get(gram, (0, -1, 0))
            if times > first:
                most[gram] = (times, index, first)
            else:
                most[gram] = (first, who, max(second, times))
    matches = np.zeros(len(counts))
    for index, count in enumerate(counts):
        for gram, times in count.items():
            first, who, second = most[gram]
            matches[index] += min(times, second if who == index else first)
    return matches


def _brevity_penalty(length: int, lengths: Counter[int]) -> float:
    others = (each for each, count in lengths.items() if count > (each == length))
    nearest = min(others, key=lambda each: (abs(each - length), each))
    return 1.0 if length >= nearest else math.exp(1 - nearest / length)


class HashedTfIdf:
    """Embeds texts by their words and pairs of words; needs no model and no download.

    Each is hashed to one of `width` places and counts the more, the fewer texts have it. Texts are
    near that say the same in the same words; paraphrases are not. For those, pass a sentence
    embedder where an `Embedder` is asked for.

    Args:
        width: Length of a vector.
    """

    def __init__(self, width: int = 4096) -> None:
        if width < 1:
            raise ConfigurationError(f"width={width}; it must be at least 1.")
        self.width = width

    def __call__(self, texts: Sequence[str]) -> Array:
        """Return vectors of length 1, shape (number of texts, width); zeros for an empty text."""
        counts = np.zeros((len(texts), self.width))
        for row, text in enumerate(texts):
            words = _words(text)
            for gram in (*_grams(words, 1), *_grams(words, 2)):
                # Not hash(), which differs from process to process.
                place = zlib.crc32(" ".join(gram).encode("utf-8", "surrogatepass")) % self.width
                counts[row, place] += 1
        rarity = np.log((1 + len(texts)) / (1 + (counts > 0).sum(axis=0))) + 1
        return _unit(np.log1p(counts) * rarity)


def similarities(vectors: Array) -> Array:
    """Return the cosine of every two vectors, shape (n, n), with ones on the diagonal.

    Two vectors of zeros are the same; one is unlike all others.
    """
    unit = _unit(np.asarray(vectors, dtype=np.float64))
    cosines = unit @ unit.T
    empty = ~unit.any(axis=1)
    cosines[np.ix_(empty, empty)] = 1.0
    np.fill_diagonal(cosines, 1.0)
    return np.clip(cosines, -1.0, 1.0)


def mean_distance(similarity: Array) -> float:
    """One minus the mean cosine of two different texts, in [0, 2]; NaN below two texts."""
    n = len(similarity)
    if n < 2:
        return math.nan
    return 1 - float((similarity.sum() - np.trace(similarity)) / (n * (n - 1)))


def vendi_score(similarity: Array) -> float:
    """Return how many different texts the texts are worth: from 1, all alike, to their number.

    The exponential of the entropy of the eigenvalues of ``similarity / n`` (Friedman and Dieng,
    arXiv 2210.02410, definition 3.1). NaN without texts.

    Args:
        similarity: Shape (n, n), symmetric, positive semi-definite, ones on the diagonal.
    """
    n = len(similarity)
    if not n:
        return math.nan
    eigenvalues = np.linalg.eigvalsh(similarity / n)
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(positive * np.log(positive)).sum()))


@dataclass(frozen=True)
class Diversity:
    """How different texts are.

    All but `clusters` are of the sample, because they change with its size: compare only where
    `sample` is equal.

    Attributes:
        texts: How many there are.
        sample: How many were drawn and measured.
        distinct_1: See `distinct_n`; higher is more diverse.
        distinct_2: See `distinct_n`; higher is more diverse.
        self_bleu: See `self_bleu`, by n; lower is more diverse.
        distance: See `mean_distance`; higher is more diverse.
        vendi: See `vendi_score`; higher is more diverse.
        clusters: Kinds among all texts, see `greedy_clusters`.
    """

    texts: int
    sample: int
    distinct_1: float
    distinct_2: float
    self_bleu: Mapping[int, float]
    distance: float
    vendi: float
    clusters: int

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers by name, in JSON's types."""
        bleu = {str(n): value for n, value in self.self_bleu.items()}
        return {**asdict(self), "self_bleu": bleu}


def diversity(
    texts: Sequence[str],
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    embed: Embedder | None = None,
) -> Diversity:
    """Measure how different texts are, for instance the attacks that succeeded.

    Args:
        texts: What to measure.
        sample: Texts drawn at random without replacement; all of them if there are fewer.
        seed: Of the draw; the same seed and texts give the same numbers.
        embed: Turns texts into vectors; None is `HashedTfIdf`.

    Raises:
        ConfigurationError: `sample` is below 1.
        ContractError: `embed` returned something else than one finite vector per text.
    """
    if sample < 1:
        raise ConfigurationError(f"sample={sample}; it must be at least 1.")
    drawn = list(texts)
    if len(drawn) > sample:
        drawn = Random(derive_seed(seed, "diversity")).sample(drawn, sample)
    similarity = similarities(_embedded(drawn, embed or HashedTfIdf()))
    return Diversity(
        texts=len(texts),
        sample=len(drawn),
        distinct_1=distinct_n(drawn, 1),
        distinct_2=distinct_n(drawn, 2),
        self_bleu={n: self_bleu(drawn, n) for n in SELF_BLEU},
        distance=mean_distance(similarity),
        vendi=vendi_score(similarity),
        clusters=len(greedy_clusters(texts)),
    )


def _embedded(texts: Sequence[str], embed: Embedder) -> Array:
    if not texts:
        return np.zeros((0, 1))
    vectors = np.asarray(embed(texts), dtype=np.float64)
    check_length(vectors, len(texts), source="the embedder")  # type: ignore[arg-type]
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ContractError(
            f"the embedder returned shape {vectors.shape}; expected finite numbers of shape "
            f"({len(texts)}, width)."
        )
    return vectors


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Array = vectors / np.where(norms > 0, norms, 1)
    return unit


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
