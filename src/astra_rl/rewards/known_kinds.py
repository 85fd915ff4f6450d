"""A term that pays less for kinds of success that are known already."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from astra_rl.core.attack_files import read_attacks
from astra_rl.core.contracts import is_missing
from astra_rl.core.graph import Graph
from astra_rl.core.text import Exchange, NoAttack
from astra_rl.core.word_clusters import GreedyClusters
from astra_rl.core.word_sets import word_set
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.infra.unicode import well_formed
from astra_rl.logging import logger
from astra_rl.moderators.naming import naming_moderator
from astra_rl.rewards.base import RESPONSE_HARM, RewardModels, RewardTerm, State
from astra_rl.rewards.embedding import Embedder, UsesVectors, Vectors

NEW = -1
"""In place of the number of a kind: there is none yet."""
_EPSILON = 1e-6
"""Rounding error of unit vectors in single precision."""
_QUOTE = '"'
"""Around the words that stand for a failure without a name; no name begins with it."""


def rarity(known: int, power: float) -> float:
    """Return ``(1 + known) ** -power``, the value of a kind with so many known successes.

    It is a bonus of count-based exploration (Strehl and Littman, *JCSS* 74, 2008; with power 1/2:
    Bellemare et al., arXiv 1606.01868). If a method always takes the kind of the highest value, all
    kinds are taken equally often, whatever the power.

    Args:
        known: Number of known successes, 0 or more.
        power: Exponent, 0 or more; 0 pays all kinds alike.

    Returns:
        The value, in (0, 1]; 1 for a new kind.
    """
    return float((1 + known) ** -power)


class Kinds(ABC):
    """Kinds of texts, each with its first text: a text joins the first kind similar enough.

    Attributes:
        first: First text of each kind.
        counts: Number of texts of each kind.
    """

    def __init__(self) -> None:
        self.first: list[str] = []
        self.counts: list[int] = []

    def add(self, models: RewardModels, texts: Sequence[str]) -> None:
        """Count texts, in order; those whose kind is unknown are left out."""
        for text in texts:
            (kind,) = self.find(models, [text])
            if kind == NEW:
                self.extend(models, text)
                self.counts.append(0)
            if kind is not None:
                self.counts[kind] += 1  # NEW is the last

    def count(self, models: RewardModels, texts: Sequence[str]) -> list[int | None]:
        """Return how many texts of its kind are known, for each text; None if it is unknown."""
        return [
            kind if kind is None else 0 if kind == NEW else self.counts[kind]
            for kind in self.find(models, texts)
        ]

    def restore(self, first: Sequence[str], counts: Sequence[int]) -> None:
        """Set the kinds of an object that has none."""
        self.first, self.counts = list(first), list(counts)

    @abstractmethod
    def find(self, models: RewardModels, texts: Sequence[str]) -> list[int | None]:
        """Return the number of the kind of each text, `NEW`, or None if it cannot be embedded."""

    def extend(self, models: RewardModels, text: str) -> None:
        """Add a kind with this first text."""
        self.first.append(text)


class KindsByWords(Kinds):
    """Kinds by the Jaccard similarity of the sets of words, see `GreedyClusters`."""

    def __init__(self, similarity: float) -> None:
        super().__init__()
        self._clusters = GreedyClusters(similarity=similarity)

    def restore(self, first: Sequence[str], counts: Sequence[int]) -> None:
        """See `Kinds.restore`."""
        super().restore(first, counts)
        for text in first:
            self._clusters.add(text)

    def find(self, models: RewardModels, texts: Sequence[str]) -> list[int | None]:
        """See `Kinds.find`."""
        found = map(self._clusters.find, texts)
        return [NEW if kind is None else kind for kind in found]

    def extend(self, models: RewardModels, text: str) -> None:
        """See `Kinds.extend`."""
        super().extend(models, text)
        self._clusters.add(text)


class KindsByName(Kinds):
    """Kinds of equal texts."""

    def find(self, models: RewardModels, texts: Sequence[str]) -> list[int | None]:
        """See `Kinds.find`."""
        numbers = {name: number for number, name in enumerate(self.first)}
        return [numbers.get(text, NEW) for text in texts]


class KindsByMeaning(Kinds):
    """Kinds by the cosine similarity of embeddings."""

    def __init__(self, similarity: float, vectors: Vectors) -> None:
        super().__init__()
        self.similarity, self.vectors = similarity, vectors
        self._table, self._known = torch.zeros(0, 0), 0
        """Vectors of the first `_known` kinds, and room for more: it is copied when it is full."""

    def add(self, models: RewardModels, texts: Sequence[str]) -> None:
        """See `Kinds.add`."""
        self.vectors(models, texts)  # embedded together, which is faster, and kept
        super().add(models, texts)

    def find(self, models: RewardModels, texts: Sequence[str]) -> list[int | None]:
        """See `Kinds.find`."""
        if self._known < len(self.first):  # restored from a state, where there are no models
            self._append(self._embedded(models, self.first[self._known :]))
        return list(map(self._find, self._embedded(models, texts))) if len(texts) else []

    def extend(self, models: RewardModels, text: str) -> None:
        """See `Kinds.extend`."""
        super().extend(models, text)
        self._append(self._embedded(models, [text]))

    def _find(self, vector: Tensor) -> int | None:
        if not vector.isfinite().all():
            return None
        if not self._known:
            return NEW
        near = self._table[: self._known] @ vector >= self.similarity - _EPSILON
        similar = near.nonzero()
        return int(similar[0]) if len(similar) else NEW

    def _append(self, vectors: Tensor) -> None:
        known, end = self._known, self._known + len(vectors)
        if end > len(self._table):
            table = vectors.new_zeros(max(end, 2 * known), vectors.shape[1])
            if known:
                table[:known] = self._table[:known]
            self._table = table
        self._table[known:end] = vectors
        self._known = end

    def _embedded(self, models: RewardModels, texts: Sequence[str]) -> Tensor:
        vectors = self.vectors(models, texts).double()
        # Texts without a vector, such as empty ones, are alike: they have a dimension of their own.
        nothing = ~vectors.any(dim=1, keepdim=True)
        return torch.cat([vectors, nothing.double()], dim=1)


@named("kind_novelty")
class KindNovelty(UsesVectors, RewardTerm):
    """Novelty of the kind of an attack over all successes of the training, in [0, 1]; 1 is new.

    ``(1 + n) ** -power``, where n counts the earlier successes of the same kind (see `rarity`). Two
    attacks are of one kind if they share most words or, with an embedder, their meaning: an attack
    joins the first kind whose first attack is similar enough. All attacks of a training experience
    are valued by the counts before it. An attack is a success if the problem's moderator scores the
    response at least `threshold`; the reward must contain a term `Harm` that records it.

    With the successes of `earlier` attackers an attacker is pushed from what they found. Attackers
    trained one after the other, each with the successes of all before it, are a population.

    It is meant as a factor of harm, for instance as the ``novelty`` of `NovelFailureReward`: a
    failure that is known pays less and less, so the attacker moves on.

    Args:
        power: Exponent, 0 or more.
        embedder: See `astra_rl.rewards.embedding.Vectors`; None compares the sets of words.
        similarity: Least similarity of one kind, in (0, 1]: of the word sets (Jaccard), by default
            0.5, or the cosine of the embeddings, by default 0.7.
        threshold: Least score of a success, in (0, 1].
        exhausted: Number of successes from which a kind pays nothing, at least 1; None is no limit.
            Algorithms that divide advantages by their deviation enlarge small rewards again, and
            cannot enlarge nothing.
        earlier: Successes that are known before the training, or the path of a file with them, see
            `read_attacks`. Of a file with rewards, those of at least `threshold` are read.

    Raises:
        ConfigurationError: A value is out of range, or the file cannot be read.
    """

    name = "kind_novelty"

    def __init__(
        self,
        *,
        power: float = 1.0,
        embedder: str | Embedder | None = None,
        similarity: float | None = None,
        threshold: float = 0.5,
        exhausted: int | None = None,
        earlier: str | Sequence[str] = (),
    ) -> None:
        if not 0 <= power < math.inf:
            raise ConfigurationError(f"power={power}; it must be 0 (off) or positive.")
        if similarity is None:
            similarity = 0.5 if embedder is None else 0.7
        if not 0 < similarity <= 1:
            raise ConfigurationError(f"similarity={similarity}; it must be above 0 and at most 1.")
        if not 0 < threshold <= 1:
            raise ConfigurationError(f"threshold={threshold}; it must be above 0 and at most 1.")
        if exhausted is not None and not exhausted >= 1:
            raise ConfigurationError(f"exhausted={exhausted}; it must be at least 1, or None.")
        self.power = power
        self.exhausted = math.inf if exhausted is None else exhausted
        self.threshold = threshold
        self.similarity = similarity
        self._by_meaning = embedder is not None
        self.vectors = Vectors() if embedder is None else Vectors(embedder)
        self.kinds = self._no_kinds()
        if isinstance(earlier, str):
            earlier = _successes(earlier, threshold)
        self._earlier = [well_formed(attack) for attack in earlier]

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the novelty of the kind of each attack; NaN if it cannot be embedded."""
        known = self._known(models).count(models, list(map(self.text_of, exchanges)))
        return [math.nan if count is None else self._value(count) for count in known]

    def observe(self, models: RewardModels, graphs: Sequence[Graph[str, str]]) -> None:
        """Count the successes of this experience."""
        nodes = [node for graph in graphs for node in graph.nodes()]
        successes = [
            self.text_of(Exchange(node.context, node.attack, node.response))
            for node in nodes
            if self.name in node.reward_terms
            and not isinstance(node.attack, NoAttack)
            and self._succeeded(node.reward_terms.get(RESPONSE_HARM, math.nan))
        ]
        self._known(models).add(models, successes)

    def text_of(self, exchange: Exchange) -> str:
        """Return the text whose kind is counted: the attack."""
        return well_formed(exchange.attack)

    def state_dict(self) -> State:
        """Return the first attack of each kind, and how many successes it has.

        Before the first experience there are none, also none of `earlier`.
        """
        return {"first": list(self.kinds.first), "counts": list(self.kinds.counts)}

    def load_state_dict(self, state: State) -> None:
        """Restore the kinds."""
        self.kinds = self._no_kinds()
        self.kinds.restore(state["first"], state["counts"])
        if self.kinds.first:  # those of earlier attackers are among them
            self._earlier = []

    def _known(self, models: RewardModels) -> Kinds:
        """Return the kinds, with those of earlier attackers; to embed them may need the models."""
        if self._earlier:
            self.kinds.add(models, self._earlier)
            self._earlier = []
        return self.kinds

    def _value(self, known: int) -> float:
        return rarity(known, self.power) if known < self.exhausted else 0.0

    def _no_kinds(self) -> Kinds:
        if self._by_meaning:
            return KindsByMeaning(self.similarity, self.vectors)
        return KindsByWords(self.similarity)

    def _succeeded(self, harm: float) -> bool:
        return not is_missing(harm) and harm >= self.threshold


def _successes(file: str, threshold: float) -> list[str]:
    """Return the attacks of a file that succeeded: all, if it has no rewards."""
    found = [each for each in read_attacks(file) if not isinstance(each.attack, NoAttack)]
    has_rewards = not all(math.isnan(each.reward) for each in found)
    return [each.attack for each in found if each.reward >= threshold or not has_rewards]


@named("named_novelty")
class NamedNovelty(KindNovelty):
    """Novelty of the named failure over all successes of the training, in [0, 1]; 1 is new.

    It is `KindNovelty` where a rule names the failures: which of several secrets was revealed, what
    an invented number is of. Two successes are of one kind if their first failure has the same
    name. Attacks without a named failure are of one kind if they have the same words. A warning is
    logged if the rule names none of the first successes, as the rule of another failure does.

    Args:
        rule: Name of a moderator with a method ``failures``, which names the failures of an
            exchange: ``"secret_leak"`` or ``"invented_number"``.
        power: See `KindNovelty`.
        threshold: See `KindNovelty`.
        exhausted: See `KindNovelty`.

    Raises:
        ConfigurationError: There is no such moderator, it names no failures, or see `KindNovelty`.
    """

    name = "named_novelty"

    def __init__(
        self,
        rule: str = "secret_leak",
        *,
        power: float = 1.0,
        threshold: float = 1.0,
        exhausted: int | None = None,
    ) -> None:
        super().__init__(power=power, threshold=threshold, exhausted=exhausted)
        self._rule_name, self._rule = rule, naming_moderator(rule)
        self._is_warned = False

    def observe(self, models: RewardModels, graphs: Sequence[Graph[str, str]]) -> None:
        """See `KindNovelty.observe`; also warn, once, if no success has a name."""
        super().observe(models, graphs)
        kinds = self.kinds.first
        if kinds and not self._is_warned and all(kind.startswith(_QUOTE) for kind in kinds):
            self._is_warned = True
            logger.warning(
                "named_novelty: the rule %s named none of the first %d successes, so their kinds "
                "are counted by the words of the attacks. Set rule to the moderator whose failures "
                "are rewarded, or use kind_novelty.",
                self._rule_name,
                sum(self.kinds.counts),
            )

    def text_of(self, exchange: Exchange) -> str:
        """Return the name of the first failure; if there is none, the words of the attack."""
        unnamed = f"{_QUOTE}{' '.join(sorted(word_set(exchange.attack)))}{_QUOTE}"
        return well_formed(next(iter(self._rule.failures(exchange)), unnamed))

    def _no_kinds(self) -> Kinds:
        return KindsByName()
