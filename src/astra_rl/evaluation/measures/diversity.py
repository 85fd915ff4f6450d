"""Diversity of a set of texts: clusters, distinct-n, self-BLEU, Vendi score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astra_rl.core.seeding import derive_seed
from astra_rl.core.word_sets import words_of
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.embeddings import (
    Embedder,
    HashedTfIdf,
    embedded,
    grams_of,
    mean_distance,
    similarities,
)
from astra_rl.evaluation.measures.text_clusters import clusters_by_meaning, greedy_clusters
from astra_rl.evaluation.stats.intervals import Array, Interval, student_quantile

SAMPLE = 100
"""Number of sampled texts for all measures but the number of clusters."""
SELF_BLEU = (2, 3, 4, 5)


@dataclass(frozen=True)
class EffectiveNumber:
    """Number of equally large groups with the same entropy as the groups of a sample.

    Attributes:
        estimate: Exponential of the entropy of the sizes (Hill number of order 1; Jost, *Oikos*
            113, 2006), of this sample: from 1 to the number of groups; NaN without members.
        least: Lower 97.5% bound of the effective number of all groups that the members are drawn
            from, at most the estimate. There is no upper bound: any number of rare groups may have
            no member in a sample.
    """

    estimate: float
    least: float

    @property
    def interval(self) -> Interval:
        """From `least` to infinity."""
        return Interval(self.least, math.inf)

    @property
    def text(self) -> str:
        """The numbers as a phrase."""
        return f"{self.estimate:.1f} in this sample, at least {self.least:.1f} of all (95%)"

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return {"estimate": self.estimate, "low": self.least}


_RESAMPLES = 1000
"""Bootstrap samples of `effective_number`."""
_BLOCK = 10_000
"""Most counts that are drawn at one time."""


def effective_number(
    sizes: Sequence[int], prompts: Sequence[Sequence[Hashable]] | None = None
) -> EffectiveNumber:
    """Return the effective number of groups of these sizes.

    The entropy of a sample is below that of the population on average, because rare groups have no
    member, and that of a redrawn sample is lower again. So the smaller of the percentile of a
    bootstrap and its mirror image (basic bootstrap) is a lower bound. Members of one prompt are
    alike, so prompts are redrawn, and few of them widen it as in `bootstrap_interval`. Coverage by
    simulation: see ``benchmarks/claims.py``.

    Args:
        sizes: Number of members of each group, at least 1 each.
        prompts: Prompt of each member of each group. None: members are independent, as they are if
            all have one prompt.
    """
    counts = np.asarray(sizes, dtype=np.float64)
    if not counts.sum():
        return EffectiveNumber(math.nan, math.nan)
    estimate = float(_hill(counts[None] / counts.sum())[0])
    members = [each for group in prompts or () for each in group]
    # In an order of their own, so that the bound does not depend on that of the groups.
    places = {each: at for at, each in enumerate(sorted(set(members), key=str))}
    clusters = len(places)
    if clusters < 2 or clusters == len(members):
        drawn, tail = _redrawn(np.sort(counts)), 0.025
    else:
        rows = np.array([places[each] for each in members])
        drawn = _redrawn_by_prompt(rows, np.repeat(np.arange(len(counts)), sizes))
        reach = math.sqrt(clusters / (clusters - 1)) * student_quantile(0.95, clusters - 1)
        tail = NormalDist().cdf(-reach)
    entropy = math.log(estimate)
    low, high = np.quantile(np.log(drawn), [tail, 1 - tail])
    return EffectiveNumber(
        estimate, math.exp(min(entropy, max(0.0, float(min(low, 2 * entropy - high)))))
    )


def effective_number_of(
    groups: Sequence[Sequence[int]], prompts: Sequence[Hashable] | None = None
) -> EffectiveNumber:
    """Return the effective number of groups of indices.

    Args:
        groups: Indices of the members of each group.
        prompts: Prompt of each index; None: all members are independent.
    """
    known = None if prompts is None else [[prompts[at] for at in group] for group in groups]
    return effective_number([len(group) for group in groups], known)


def _redrawn(counts: Array) -> Array:
    """Return the effective number of each of `_RESAMPLES` samples of members."""
    total, random = int(counts.sum()), np.random.default_rng(0)
    # In blocks, which draw the same as one call: of 100,000 groups all at once take gigabytes.
    block = max(1, _BLOCK // len(counts))
    drawn = [
        _hill(random.multinomial(total, counts / total, size=min(block, _RESAMPLES - at)) / total)
        for at in range(0, _RESAMPLES, block)
    ]
    return np.concatenate(drawn)


def _redrawn_by_prompt(prompts: NDArray[np.int64], groups: NDArray[np.int64]) -> Array:
    """Return the effective number of each of `_RESAMPLES` samples of prompts.

    Args:
        prompts: Prompt of each member, counted from 0.
        groups: Group of each member, counted from 0.
    """
    random, clusters = np.random.default_rng(0), int(prompts.max()) + 1
    drawn = []
    for _ in range(_RESAMPLES):
        times = random.multinomial(clusters, np.full(clusters, 1 / clusters))
        counts = np.bincount(groups, weights=times[prompts])
        drawn.append(float(_hill(counts[None] / counts.sum())[0]))
    return np.array(drawn)


def _hill(shares: Array) -> Array:
    """Exponential of the entropy of each row."""
    logs = np.log(np.where(shares > 0, shares, 1.0))
    found: Array = np.exp(-(shares * logs).sum(axis=1))
    return found


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the share of distinct word n-grams (distinct-n); NaN if no text has `n` words.

    1 means that no n-gram is repeated. The measure decreases with the number of texts, so compare
    equal numbers of texts (Li et al., arXiv 1510.03055).

    Raises:
        ConfigurationError: `n` is below 1.
    """
    if n < 1:
        raise ConfigurationError(f"n={n}; it must be at least 1.")
    total = 0
    distinct = set()
    for text in texts:
        grams = grams_of(words_of(text), n)
        total += len(grams)
        distinct.update(grams)
    return len(distinct) / total if total else math.nan


def self_bleu(texts: Sequence[str], n: int) -> float:
    """Return self-BLEU: the mean BLEU-n of each text against all others; NaN below two texts.

    Lower is more diverse (Zhu et al., Texygen, arXiv 1802.01886). BLEU uses uniform weights for 1-
    to n-grams and the brevity penalty for the closest reference length; zero matches are smoothed
    to 0.1 (method 1 of Chen and Cherry, WMT 2014). Texts without words are left out.

    Raises:
        ConfigurationError: `n` is below 1.
    """
    if n < 1:
        raise ConfigurationError(f"n={n}; it must be at least 1.")
    documents = [words for words in map(words_of, texts) if words]
    if len(documents) < 2:
        return math.nan
    logs = np.zeros(len(documents))
    matched_any = np.zeros(len(documents), dtype=bool)
    for order in range(1, n + 1):
        counts = [Counter(grams_of(words, order)) for words in documents]
        matches = _matches_elsewhere(counts)
        if order == 1:
            matched_any = matches > 0
        totals = np.array([max(1, sum(count.values())) for count in counts])
        logs += np.log(np.where(matches > 0, matches, 0.1) / totals) / n
    lengths = Counter(map(len, documents))
    penalties = np.array([_brevity_penalty(len(words), lengths) for words in documents])
    return float((matched_any * penalties * np.exp(logs)).mean())


def _matches_elsewhere(counts: Sequence[Mapping[tuple[str, ...], int]]) -> Array:
    """Return the clipped n-gram matches of each text against all others."""
    # Of each n-gram: the highest count in a text, the index of that text, and the second highest.
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


def vendi_score(similarity: Array) -> float:
    """Return the Vendi score, an effective number of distinct texts in [1, N].

    It is the exponential of the entropy of the eigenvalues of ``similarity / N`` (Friedman and
    Dieng, arXiv 2210.02410, definition 3.1); NaN without texts.

    Args:
        similarity: Shape (N, N), symmetric, positive semi-definite, ones on the diagonal.
    """
    n = len(similarity)
    if not n:
        return math.nan
    eigenvalues = np.linalg.eigvalsh(similarity / n)
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(positive * np.log(positive)).sum()))


@dataclass(frozen=True)
class SampleDiversity:
    """Diversity measures of a sample of a set of texts.

    They depend on the size of the sample: compare them only for equal `sample`.

    Attributes:
        texts: Number of texts.
        sample: Number of sampled texts.
        distinct_1: See `distinct_n`; higher is more diverse.
        distinct_2: See `distinct_n`; higher is more diverse.
        self_bleu: See `self_bleu`, by n; lower is more diverse.
        distance: See `mean_distance`; higher is more diverse.
        vendi: See `vendi_score`; higher is more diverse.
    """

    texts: int
    sample: int
    distinct_1: float
    distinct_2: float
    self_bleu: Mapping[int, float]
    distance: float
    vendi: float


@dataclass(frozen=True)
class Diversity(SampleDiversity):
    """Diversity measures of a set of texts, and of a sample of it.

    Attributes:
        clusters: Number of clusters among all texts, see `greedy_clusters`; it grows with the
            number of texts, so read it beside `effective`.
        effective: Effective number of these clusters.
        effective_by_meaning: Effective number of `clusters_by_meaning` of all texts; None without
            an embedder.
    """

    clusters: int
    effective: EffectiveNumber
    effective_by_meaning: EffectiveNumber | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers by name, as JSON values."""
        bleu = {str(n): value for n, value in self.self_bleu.items()}
        return {
            **asdict(self),
            "self_bleu": bleu,
            "effective": self.effective.as_dict(),
            "effective_by_meaning": self.effective_by_meaning
            and self.effective_by_meaning.as_dict(),
        }


def diversity(
    texts: Sequence[str],
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    embed: Embedder | None = None,
    prompts: Sequence[Hashable] | None = None,
) -> Diversity:
    """Compute the diversity of a set of texts, for instance of the successful attacks.

    Args:
        texts: The texts.
        sample: See `sample_diversity`.
        seed: See `sample_diversity`.
        embed: Embeds texts by meaning; None uses `HashedTfIdf` and gives no kinds by meaning.
        prompts: Prompt of each text, see `effective_number`; None: the texts are independent.

    Raises:
        ConfigurationError: `sample` is below 1.
        ContractError: `embed` did not return one finite vector per text.
    """
    of_sample = sample_diversity(texts, sample=sample, seed=seed, embed=embed)
    groups = greedy_clusters(texts)
    return Diversity(
        **vars(of_sample),
        clusters=len(groups),
        effective=effective_number_of(groups, prompts),
        effective_by_meaning=None
        if embed is None
        else effective_number_of(clusters_by_meaning(texts, embed), prompts),
    )


def sample_diversity(
    texts: Sequence[str],
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    embed: Embedder | None = None,
) -> SampleDiversity:
    """Compute the diversity of a sample of texts; its time does not grow with their number.

    Args:
        texts: The texts.
        sample: Number of texts sampled without replacement; all of them if there are fewer.
        seed: Seed of the sample.
        embed: Embeds texts; None uses `HashedTfIdf`.

    Raises:
        ConfigurationError: `sample` is below 1.
        ContractError: `embed` did not return one finite vector per text.
    """
    if sample < 1:
        raise ConfigurationError(f"sample={sample}; it must be at least 1.")
    drawn = list(texts)
    if len(drawn) > sample:
        drawn = Random(derive_seed(seed, "diversity")).sample(drawn, sample)
    similarity = similarities(embedded(drawn, embed or HashedTfIdf()))
    return SampleDiversity(
        texts=len(texts),
        sample=len(drawn),
        distinct_1=distinct_n(drawn, 1),
        distinct_2=distinct_n(drawn, 2),
        self_bleu={n: self_bleu(drawn, n) for n in SELF_BLEU},
        distance=mean_distance(similarity),
        vendi=vendi_score(similarity),
    )
