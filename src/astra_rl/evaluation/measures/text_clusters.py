"""Groups of similar texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_rl.core.word_clusters import GreedyClusters
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.embeddings import (
    MEANING_SIMILARITY,
    Embedder,
    KindEmbedder,
    embedded,
    unit_vectors,
)

__all__ = ["GreedyClusters", "clusters_by_meaning", "greedy_clusters"]


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


def clusters_by_meaning(
    texts: Sequence[str], embed: Embedder, *, similarity: float | None = None
) -> list[list[int]]:
    """Cluster texts by the cosine similarity of their vectors, so that paraphrases are one kind.

    As in `greedy_clusters`, each text joins the first cluster whose first member is similar enough.

    Args:
        texts: The texts.
        embed: Embeds texts. A suitable similarity depends on it.
        similarity: Minimum cosine similarity, in (0, 1]; None: that of a `KindEmbedder`, and
            `MEANING_SIMILARITY` of others.

    Raises:
        ConfigurationError: `similarity` is out of its range.
        ContractError: `embed` did not return one finite vector per text.
    """
    if similarity is None:
        similarity = embed.similarity if isinstance(embed, KindEmbedder) else MEANING_SIMILARITY
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
