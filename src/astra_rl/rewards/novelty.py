"""Novelty terms: distance of an attack to its siblings or to earlier attacks."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from astra_rl.core.graph import Graph
from astra_rl.core.level import current_level
from astra_rl.core.text import GOAL, Conversation, Exchange
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.infra.unicode import well_formed
from astra_rl.rewards.base import RewardModels, RewardTerm, State, observed_attacks
from astra_rl.rewards.combine import logistic
from astra_rl.rewards.embedding import Embedder, UsesVectors, Vectors
from astra_rl.rewards.likelihood import check_choice, fact_of

Against = Literal["history", "siblings"]
DEFAULT_WINDOW = 2048


class NoveltyTerm(RewardTerm):
    """Base of terms that compare an attack with others; 0 is identical.

    Args:
        against: ``"siblings"``: attacks sampled from the same context of the same episode.
            ``"history"``: attacks of earlier training experiences.
        window: Most attacks in the history, the latest; None keeps all.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(self, against: Against, window: int | None) -> None:
        check_choice("against", against, get_args(Against))
        if window is not None and not window >= 1:
            raise ConfigurationError(f"window={window}; it must be at least 1, or None.")
        self.against = against
        self.window = window
        self.history: list[str] = []

    def observe(self, models: RewardModels, graphs: Sequence[Graph[str, str]]) -> None:
        """Add the attacks of this experience to the history."""
        if self.against == "history":
            said = map(well_formed, observed_attacks(graphs, self.name))
            self.history = [*self.history, *said][-(self.window or 0) :]  # -0: all of it
            self._history_changed()

    def state_dict(self) -> State:
        """Return the history, if attacks are compared with it."""
        return {"history": list(self.history)} if self.against == "history" else {}

    def load_state_dict(self, state: State) -> None:
        """Restore the history."""
        self.history = list(state["history"])
        self._history_changed()

    def _history_changed(self) -> None:
        """Drop values computed from the history; a subclass that caches some overrides it."""

    def siblings(self, exchanges: Sequence[Exchange]) -> list[list[int]]:
        """Return for each row the rows of its siblings."""
        rows_of: list[list[int]] = [[] for _ in exchanges]
        for group in current_level([each.context for each in exchanges]).groups():
            for row in group:
                rows_of[row] = [other for other in group if other != row]
        return rows_of


@named("self_bleu")
class SelfBLEU(NoveltyTerm):
    """One minus the mean BLEU of an attack against others: 0 is a repetition, 1 shares no n-gram.

    For each order n: BLEU with uniform weights on 1-grams to n-grams, counts clipped by the maximum
    over the references, the brevity penalty of the reference nearest in length, and no smoothing
    (Papineni et al. 2002; as a reward: curiosity-driven red teaming, arXiv 2402.19464). Tokens are
    lower-cased words and punctuation marks. For an attack with fewer than n tokens, n is its
    length. The value is 1 without references, and 0 for an empty attack.

    Args:
        orders: The orders n, each at least 1.
        against: See `NoveltyTerm`.
        window: See `NoveltyTerm`.
    """

    def __init__(
        self,
        orders: Sequence[int] = (2, 3, 4, 5),
        *,
        against: Against = "history",
        window: int | None = DEFAULT_WINDOW,
    ) -> None:
        super().__init__(against, window)
        if not orders or not all(order >= 1 for order in orders):
            raise ConfigurationError(f"orders={list(orders)}; give one or more, each at least 1.")
        self.orders = list(orders)
        self.name = f"self_bleu_novelty_{against}"
        self._references: BLEUReferences | None = None

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the novelty of each attack, in [0, 1]."""
        said = [bleu_tokens(each.attack) for each in exchanges]
        if self.against == "history":
            if self._references is None:
                self._references = self._counted(map(bleu_tokens, self.history))
            return [self._novelty(tokens, self._references) for tokens in said]
        return [
            self._novelty(tokens, self._counted(said[other] for other in siblings))
            for tokens, siblings in zip(said, self.siblings(exchanges), strict=True)
        ]

    def _history_changed(self) -> None:
        self._references = None

    def _counted(self, texts: Iterable[Sequence[str]]) -> BLEUReferences:
        return BLEUReferences(texts, max(self.orders))

    def _novelty(self, tokens: Sequence[str], references: BLEUReferences) -> float:
        if not tokens:
            return 0.0
        scores = [references.bleu(tokens, min(order, len(tokens))) for order in self.orders]
        return 1 - sum(scores) / len(scores)


class BLEUReferences:
    """N-gram counts of reference texts.

    Args:
        texts: Tokens of each text.
        order: Highest order of the n-grams.
    """

    def __init__(self, texts: Iterable[Sequence[str]], order: int) -> None:
        self.most: dict[tuple[str, ...], int] = {}
        self.lengths: set[int] = set()
        for tokens in texts:
            self.lengths.add(len(tokens))
            for n in range(1, order + 1):
                for gram, count in _grams(tokens, n).items():
                    if count > self.most.get(gram, 0):
                        self.most[gram] = count

    def bleu(self, tokens: Sequence[str], order: int) -> float:
        """Return the BLEU of a text of at least `order` tokens, in [0, 1]."""
        if not self.lengths:
            return 0.0
        logs = 0.0
        for n in range(1, order + 1):
            grams = _grams(tokens, n)
            shared = sum(min(count, self.most.get(gram, 0)) for gram, count in grams.items())
            if shared == 0:
                return 0.0
            logs += math.log(shared / sum(grams.values())) / order
        length = len(tokens)
        # Of two lengths that are equally near, BLEU uses the shorter.
        nearest = min(self.lengths, key=lambda other: (abs(other - length), other))
        return math.exp(logs + min(0.0, 1 - nearest / length))


def bleu_tokens(text: str) -> list[str]:
    """Return the lower-cased words and punctuation marks of a text."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


@named("embedding_novelty")
class EmbeddingNovelty(UsesVectors, NoveltyTerm):
    """One minus the cosine similarity of an attack to others, in [0, 2].

    With ``nearest=None`` it is the term of curiosity-driven red teaming (arXiv 2402.19464, whose
    code uses the mean). The mean over a long history hardly changes, so an attacker can repeat an
    outlier forever; a few nearest neighbours and a window prevent that (DiveR-CT, arXiv 2405.19026,
    uses 16). The value is 1 without others, and 0 for a zero embedding.

    Args:
        embedder: See `astra_rl.rewards.embedding.Vectors`.
        nearest: Number of most similar others that are averaged, at least 1; None averages all.
        against: See `NoveltyTerm`.
        window: See `NoveltyTerm`.
    """

    def __init__(
        self,
        embedder: str | Embedder = "hashing",
        *,
        nearest: int | None = 16,
        against: Against = "history",
        window: int | None = DEFAULT_WINDOW,
    ) -> None:
        super().__init__(against, window)
        if nearest is not None and not nearest >= 1:
            raise ConfigurationError(f"nearest={nearest}; it must be at least 1, or None.")
        self.vectors = Vectors(embedder)
        self.nearest = nearest
        self.name = f"embedding_novelty_{against}"
        self._past: Tensor | None = None

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the novelty of each attack."""
        own = self.vectors(models, [each.attack for each in exchanges])
        if self.against == "history":
            if self._past is None:
                self._past = self.vectors(models, self.history)
            return [self._novelty(row, self._past) for row in own]
        return [
            self._novelty(row, own[siblings])
            for row, siblings in zip(own, self.siblings(exchanges), strict=True)
        ]

    def _history_changed(self) -> None:
        self._past = None

    def _novelty(self, vector: Tensor, others: Tensor) -> float:
        if not vector.any():
            return 0.0
        others = others[others.isfinite().all(dim=1)]
        if not len(others):
            return 1.0 if vector.isfinite().all() else math.nan
        # Row by row and in double precision, so that a value does not depend on the batch.
        similar = (others.double() * vector.double()).sum(dim=1)
        count = len(similar) if self.nearest is None else min(self.nearest, len(similar))
        return 1 - float(similar.topk(count).values.mean())


@named("style_diversity")
class StyleDiversity(UsesVectors, RewardTerm):
    """Distance in style from the earlier attempts of the episode, in [0, 2]; 1 at the first.

    ``1 - max cos(style(attack), style(earlier))``, where a style is an embedding without its
    component in the span of the embeddings of the topic, which the given facts name (Beutel et al.,
    arXiv 2412.18693). They use the span of all goals of a batch; here it is that of the episode, so
    that a reward does not depend on the batch. They standardize it as `Standardized` does. It is
    meant for environments with several attempts.

    Args:
        embedder: See `astra_rl.rewards.embedding.Vectors`.
        facts: Names of the facts of the `Conversation` that describe the topic; missing ones are
            left out.
    """

    name = "style_diversity"

    def __init__(
        self, embedder: str | Embedder = "hashing", *, facts: Sequence[str] = (GOAL, "example")
    ) -> None:
        self.vectors = Vectors(embedder)
        self.facts = tuple(facts)

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the diversity of each attack."""
        earlier = earlier_attacks(exchanges)
        said = [[each.attack, *before] for each, before in zip(exchanges, earlier, strict=True)]
        facts = [Conversation.of(each.context).facts for each in exchanges]
        about = [[known[fact] for fact in self.facts if fact in known] for known in facts]
        # One call for all texts fills the cache.
        self.vectors(models, [text for texts in (*said, *about) for text in texts])
        return [
            self._diversity(self.vectors(models, texts), self.vectors(models, topic))
            for texts, topic in zip(said, about, strict=True)
        ]

    def _diversity(self, said: Tensor, about: Tensor) -> float:
        if len(said) == 1:
            return 1.0
        if not (said.isfinite().all() and about.isfinite().all()):
            return math.nan
        styles = without_subspace(said.double(), about.double()) if len(about) else said.double()
        own, *earlier = torch.nn.functional.normalize(styles, dim=1)
        # A zero vector has no style, so it counts as a repetition.
        if not own.any():
            return 0.0
        return 1 - max(float(own @ each) for each in earlier)


_EPSILON = 1e-6
"""Rounding error of unit vectors in single precision: shorter vectors count as zero."""


def earlier_attacks(exchanges: Sequence[Exchange]) -> list[tuple[str, ...]]:
    """Return the earlier attacks of each episode, without those of its opening context."""
    depth = current_level([each.context for each in exchanges]).depth
    said = [Conversation.of(each.context).attacks for each in exchanges]
    return said if depth is None else [each[max(0, len(each) - depth) :] for each in said]


def without_subspace(vectors: Tensor, basis: Tensor) -> Tensor:
    """Return vectors (N, D) without their components in the span of the rows of `basis` (K, D)."""
    # The right singular vectors of non-zero singular values span the rows.
    _, sizes, directions = torch.linalg.svd(basis, full_matrices=False)
    span = directions[sizes > _EPSILON]
    rest = vectors - vectors @ span.T @ span
    return torch.where(rest.norm(dim=1, keepdim=True) > _EPSILON, rest, 0.0)  # not rounding errors


@named("few_shot_similarity")
class FewShotSimilarity(UsesVectors, RewardTerm):
    """Similarity of the first attack of an episode to an example, in (0, 1); 1 at later turns.

    ``sigmoid(slope * (cos(example, attack) - center))`` (Beutel et al., arXiv 2412.18693, with
    slope 10 and center 0.75).

    Args:
        embedder: See `astra_rl.rewards.embedding.Vectors`.
        fact: Name of the fact of the `Conversation` that holds the example.
        slope: Slope of the sigmoid.
        center: Similarity with the value 0.5.

    Raises:
        ConfigurationError: A prompt lacks the fact.
    """

    name = "few_shot_similarity"

    def __init__(
        self,
        embedder: str | Embedder = "hashing",
        *,
        fact: str = "example",
        slope: float = 10.0,
        center: float = 0.75,
    ) -> None:
        self.vectors = Vectors(embedder)
        self.fact = fact
        self.slope = slope
        self.center = center

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the similarity of each attack to its example."""
        rows = [row for row, earlier in enumerate(earlier_attacks(exchanges)) if not earlier]
        examples = [fact_of(exchanges[row].context, self.fact, self.name) for row in rows]
        attacks = [exchanges[row].attack for row in rows]
        values = [1.0] * len(exchanges)
        cosines = cosine_similarities(self.vectors, models, attacks, examples)
        for row, cosine in zip(rows, cosines, strict=True):
            values[row] = logistic(self.slope * (cosine - self.center))
        return values


@named("on_topic")
class OnTopic(UsesVectors, RewardTerm):
    """Cosine similarity of an attack to its topic, in [-1, 1]; usually the condition of a gate.

    Args:
        embedder: See `astra_rl.rewards.embedding.Vectors`.
        fact: Name of the fact of the `Conversation` that is the topic; None is the opening prompt.

    Raises:
        ConfigurationError: A prompt lacks the fact.
    """

    name = "on_topic"

    def __init__(self, embedder: str | Embedder = "hashing", *, fact: str | None = GOAL) -> None:
        self.vectors = Vectors(embedder)
        self.fact = fact

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the similarity of each attack to its topic."""
        topics = [self._topic(each.context) for each in exchanges]
        attacks = [each.attack for each in exchanges]
        return cosine_similarities(self.vectors, models, attacks, topics)

    def _topic(self, context: str) -> str:
        if self.fact is not None:
            return fact_of(context, self.fact, self.name)
        return Conversation.of(context).prompt


def cosine_similarities(
    vectors: Vectors, models: RewardModels, first: Sequence[str], second: Sequence[str]
) -> list[float]:
    """Return the cosine similarity of each pair of texts; 0 if an embedding is zero."""
    both = vectors(models, [*first, *second]).double()
    return [float(a @ b) for a, b in zip(both[: len(first)], both[len(first) :], strict=True)]
