"""Texts as vectors, and how similar they are."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from astra_rl.core.contracts import check_length
from astra_rl.core.word_sets import words_of
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.stats.intervals import Array
from astra_rl.logging import logger

Embedder = Callable[[Sequence[str]], Array]
"""Maps N texts to vectors of shape (N, width); similar texts have a high cosine similarity."""


MEANING_SIMILARITY = 0.7
"""Cosine similarity from which texts are one kind, if nothing else is said."""
UNRELATED = (
    "How do I bake bread at home?",
    "Tell me about the French revolution.",
    "Write a poem about the sea.",
    "What is the capital of Peru?",
    "Explain in simple words how a computer sorts numbers.",
    "My cat is ill. What should I do?",
    "Who won the football match yesterday?",
    "Translate this letter into German.",
    "My password does not work any more.",
    "Is it going to rain tomorrow?",
)
"""Sentences of which no two are about the same."""
UNRELATED_BY_SCRIPT = {
    "Chinese": (
        "怎么在家烤面包?",
        "法国大革命是什么时候开始的?",
        "请写一首关于大海的诗。",
        "我的猫生病了。",
    ),
    "Devanagari": (
        "घर पर रोटी कैसे बनाते हैं?",
        "फ्रांस की क्रांति कब हुई थी?",
        "समुद्र पर एक कविता लिखो।",
        "मेरी बिल्ली बीमार है।",
    ),
}
"""The same in other scripts, of which the vocabulary of a model may have nothing."""
PARAPHRASES = (
    ("How do I bake bread at home?", "How can I bake bread at home?"),
    ("What is the capital of Peru?", "What is the capital city of Peru?"),
    ("Is it going to rain tomorrow?", "Is it going to be raining tomorrow?"),
    ("My cat is ill. What should I do?", "My cat is ill. What can I do?"),
)
"""Pairs of sentences of which both ask the same in nearly the same words."""


class KindEmbedder:
    """Embedder of texts by meaning, with the similarity from which they are one kind.

    Args:
        embed: Embeds texts.
        similarity: Minimum cosine similarity, in (0, 1].
        name: Name in errors.
    """

    def __init__(
        self, embed: Embedder, *, similarity: float = MEANING_SIMILARITY, name: str = "the embedder"
    ) -> None:
        self.embed, self.similarity, self.name = embed, similarity, name

    def __call__(self, texts: Sequence[str]) -> Array:
        """Return the vectors of the texts, shape (N, width)."""
        return np.asarray(self.embed(texts), dtype=np.float64)

    def check_tells_apart(self) -> None:
        """Check that unrelated sentences are kinds of their own, and that paraphrases are not.

        A language model that was not trained to embed has nearly the same vector for all texts.
        Vectors that do not depend on the meaning are as different for paraphrases as for other
        texts. A model of few languages may have one vector for all texts in other scripts: that is
        a warning, since it does not matter to texts in its own.

        Raises:
            ConfigurationError: Some unrelated sentences are one kind, or paraphrases are not more
                alike than they are.
            ContractError: It did not return one finite vector per text.
        """
        pairs = self._pairs(UNRELATED)
        alike = int((pairs >= self.similarity).sum())
        if alike:
            raise ConfigurationError(
                f"{self.name} gives {alike} of {len(pairs)} pairs of unrelated sentences a cosine "
                f"similarity of at least {self.similarity:g} (median {np.median(pairs):.2f}, "
                f"largest {pairs.max():.3f}), so attacks of different kinds would be counted as "
                "one. Use a model that was trained to embed sentences, for instance "
                "sentence_transformers:all-MiniLM-L6-v2, or a larger "
                "evaluation.embedder_similarity."
            )
        found = [float(self._pairs(pair)[0]) for pair in PARAPHRASES]
        if min(found) <= pairs.max():
            raise ConfigurationError(
                f"{self.name} gives two sentences that ask the same a cosine similarity of "
                f"{min(found):.2f}, and two that have nothing in common {pairs.max():.2f}, so it "
                "does not measure the meaning. Use a model that was trained to embed sentences, "
                "for instance sentence_transformers:all-MiniLM-L6-v2."
            )
        missed = sum(each < self.similarity for each in found)
        if missed:
            logger.warning(
                "%s gives %d of %d pairs of sentences that ask the same less than "
                "evaluation.embedder_similarity=%g (smallest %.2f): they count as kinds of their "
                "own, so the number of kinds by meaning is too high",
                self.name,
                missed,
                len(found),
                self.similarity,
                min(found),
            )
        for script, texts in UNRELATED_BY_SCRIPT.items():
            if (self._pairs(texts) >= self.similarity).any():
                logger.warning(
                    "%s does not tell unrelated sentences in %s script apart: attacks in it, and "
                    "perhaps in other scripts, count as too few kinds by meaning; use a model of "
                    "many languages if there are any",
                    self.name,
                    script,
                )

    def _pairs(self, texts: Sequence[str]) -> Array:
        """Return the cosine similarity of each pair of texts."""
        cosines = similarities(embedded(texts, self))
        return np.asarray(cosines[np.triu_indices(len(texts), 1)])


class HashedTfIdf:
    """Embeds texts by hashed TF-IDF of words and word bigrams; needs no model and no download.

    It detects shared wording, not paraphrases; for those, use a sentence embedder.

    Args:
        width: Dimension of the vectors.
    """

    def __init__(self, width: int = 4096) -> None:
        if width < 1:
            raise ConfigurationError(f"width={width}; it must be at least 1.")
        self.width = width

    def __call__(self, texts: Sequence[str]) -> Array:
        """Return unit vectors, shape (N, width); zeros for an empty text."""
        counts = np.zeros((len(texts), self.width))
        for row, text in enumerate(texts):
            words = words_of(text)
            for gram in (*grams_of(words, 1), *grams_of(words, 2)):
                # hash() differs between processes.
                place = zlib.crc32(" ".join(gram).encode("utf-8", "surrogatepass")) % self.width
                counts[row, place] += 1
        rarity = np.log((1 + len(texts)) / (1 + (counts > 0).sum(axis=0))) + 1
        return unit_vectors(np.log1p(counts) * rarity)


def similarities(vectors: Array) -> Array:
    """Return the matrix of cosine similarities, shape (N, N), with ones on the diagonal.

    Two zero vectors have similarity 1; a zero vector and another one have similarity 0.
    """
    unit = unit_vectors(np.asarray(vectors, dtype=np.float64))
    cosines = unit @ unit.T
    empty = ~unit.any(axis=1)
    cosines[np.ix_(empty, empty)] = 1.0
    np.fill_diagonal(cosines, 1.0)
    return np.clip(cosines, -1.0, 1.0)


def mean_distance(similarity: Array) -> float:
    """Return one minus the mean pairwise cosine similarity, in [0, 2]; NaN below two texts."""
    n = len(similarity)
    if n < 2:
        return math.nan
    return 1 - float((similarity.sum() - np.trace(similarity)) / (n * (n - 1)))


def embedded(texts: Sequence[str], embed: Embedder) -> Array:
    """Return the vectors of texts, shape (N, width).

    Raises:
        ContractError: `embed` did not return one finite vector per text.
    """
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


def unit_vectors(vectors: Array) -> Array:
    """Return vectors scaled to length 1, shape (N, width); a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Array = vectors / np.where(norms > 0, norms, 1)
    return unit


def grams_of(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of `n` words."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
