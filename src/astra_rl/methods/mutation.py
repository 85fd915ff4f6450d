"""Search by mutation: variants of earlier successes, no attack sent twice."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, ClassVar

from astra_rl.core.contracts import check_length, is_missing
from astra_rl.core.environment import Graph
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import current_row_seeds, derive_seed, row_seeds
from astra_rl.core.serialization import from_record, to_record
from astra_rl.core.text import Conversation, NoAttack, NoReply, context_key
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.infra.unicode import well_formed
from astra_rl.methods.ast_environment import ASTEnvironment
from astra_rl.rewards.base import RESPONSE_HARM, RewardModels
from astra_rl.rewards.embedding import Embedder, Vectors
from astra_rl.rewards.known_kinds import NEW, Kinds, KindsByMeaning, KindsByWords

BY_WORDS, BY_MEANING = 0.5, 0.7
"""Least similarity of one kind by default: of the sets of words, and of embeddings."""
PER_KIND = 4
"""Largest number of successes of a kind that are mutated."""


class Successes:
    """The first successes of each kind, by words or by meaning, see `Kinds`.

    Args:
        similarity: Least similarity of one kind, in (0, 1], see `MutationEnvironment`.
        embedder: Compares texts by meaning; None compares their words.

    Attributes:
        kinds: The successes of each kind, `PER_KIND` at most.

    Raises:
        ConfigurationError: `similarity` is out of range.
    """

    def __init__(
        self, similarity: float | None = None, embedder: str | Embedder | None = None
    ) -> None:
        if similarity is None:
            similarity = BY_WORDS if embedder is None else BY_MEANING
        if not 0 < similarity <= 1:
            raise ConfigurationError(f"similarity={similarity}; it must be above 0 and at most 1.")
        self._known: Kinds = (
            KindsByWords(similarity)
            if embedder is None
            else KindsByMeaning(similarity, Vectors(embedder))
        )
        self.kinds: list[list[str]] = []

    def add(self, models: RewardModels, attack: str) -> None:
        """Add a success, unless enough of its kind are known or it cannot be embedded."""
        text = well_formed(attack)
        (kind,) = self._known.find(models, [text])
        if kind is None:
            return
        if kind == NEW:
            self._known.extend(models, text)
            self.kinds.append([])
        if len(self.kinds[kind]) < PER_KIND and attack not in self.kinds[kind]:
            self.kinds[kind].append(attack)

    def draw(self, random: Random) -> str:
        """Return a success of a random kind; all kinds are drawn alike."""
        return random.choice(random.choice(self.kinds))

    def state_dict(self) -> list[list[Any]]:
        """Return the successes as JSON values."""
        return [[to_record(attack) for attack in kind] for kind in self.kinds]

    def load_state_dict(self, state: Sequence[Sequence[Any]]) -> None:
        """Set the successes of an object that has none."""
        self.kinds = [[from_record(record) for record in kind] for kind in state]
        firsts = [well_formed(first) for first, *_ in self.kinds]
        self._known.restore(firsts, [len(kind) for kind in self.kinds])


@named("mutation")
class MutationEnvironment(ASTEnvironment):
    """Tree whose attacks are variants of earlier successes, or new ones, and none is sent twice.

    With probability `share` an attack is an earlier success in which one random token is replaced:
    by a sample of the frozen reference at `temperature`, after the tokens before it. All kinds of
    success are drawn alike, however often each was found. Other attacks are the attacker's own. An
    attack that the target has answered in the same context is drawn again.

    It is an evolutionary search without crossover, as token-level search for attacks uses, with an
    archive of kinds in place of a population. What it finds is for algorithms that learn from
    attacks of others: `ExpertIteration`, preferences and balance losses. With an algorithm that
    learns nothing it is a baseline.

    Successes and attacks are recorded after a training experience only, and are part of the state
    of a training. In evaluation the attacker alone writes.

    Args:
        problem: The models and the reward.
        prompts: Opening contexts.
        tree_width: Attacks sampled from each context.
        tree_depth: Number of turns per episode.
        share: Probability of a variant, in [0, 1], once there is a success; 0 makes none, also of
            attacks that are drawn again.
        temperature: Temperature of the replaced token, above 0.
        redraws: Most times that a repeated attack is drawn again; 0 permits repetitions.
        similarity: Least similarity of two attacks of one kind, in (0, 1]: of their sets of words
            (Jaccard), by default 0.5, or the cosine of their embeddings, by default 0.7.
        embedder: Compares attacks by meaning, see `astra_rl.rewards.embedding.Vectors`; None
            compares their words.
        threshold: Least score of a success, in (0, 1].

    Attributes:
        successes: The successes so far.

    Raises:
        ConfigurationError: A value is out of range, or see `ASTEnvironment`.
    """

    samples_exactly: ClassVar[bool] = False

    def __init__(
        self,
        problem: Problem[str, str],
        prompts: Sequence[str],
        tree_width: int = 8,
        tree_depth: int = 1,
        *,
        share: float = 0.5,
        temperature: float = 2.0,
        redraws: int = 8,
        similarity: float | None = None,
        embedder: str | Embedder | None = None,
        threshold: float = 0.5,
    ) -> None:
        super().__init__(problem, prompts, tree_width, tree_depth)
        _check(share, temperature, redraws, threshold)
        self.share, self.temperature = share, temperature
        self.redraws, self.threshold = redraws, threshold
        self._no_successes = partial(Successes, similarity, embedder)
        self.successes = self._no_successes()
        self._answered: set[str] = set()

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range."""
        super().check_options(**options)
        if "share" in options:
            names = ("share", "temperature", "redraws", "threshold")
            _check(*(options[name] for name in names))
            Successes(options["similarity"], options["embedder"])

    def write(self, contexts: Sequence[str]) -> Sequence[str]:
        """Return an attack per context: a variant of a success, or one of the attacker's own."""
        seeds = current_row_seeds(len(contexts))
        attacks = [""] * len(contexts)
        rows = list(range(len(contexts)))
        for number in range(1 + self.redraws):
            drawn = self._draw(
                [contexts[row] for row in rows],
                [derive_seed(seeds[row], "draw", number) for row in rows],
                share=1.0 if number and self.share else self.share,
            )
            for row, attack in zip(rows, drawn, strict=True):
                attacks[row] = attack
            rows = [row for row in rows if self._is_repeated(contexts[row], attacks[row])]
            if not rows:
                break
        return attacks

    def expand_straight(
        self, contexts: Sequence[str], seeds: Sequence[int]
    ) -> list[Graph[str, str]]:
        """Play one conversation of the attacker alone per context."""
        plain = ASTEnvironment(self.problem, self.prompts, 1, self.tree_depth)
        return plain.expand(contexts, seeds, width=1)

    def observe(self, graphs: Sequence[Graph[str, str]]) -> None:
        """Record the attacks of an experience that have a score, and its successes."""
        super().observe(graphs)
        for node in (node for graph in graphs for node in graph.nodes()):
            score = node.reward_terms.get(RESPONSE_HARM, math.nan)
            if is_missing(score) or isinstance(node.attack, NoAttack):
                continue  # the outcome is unknown, so the attack may be sent again
            self._answered.add(_digest(node.context, node.attack))
            if score >= self.threshold:
                self.successes.add(self.problem, node.attack)

    def state_dict(self) -> dict[str, Any]:
        """Return the successes and digests of the attacks, and the state of the curriculum."""
        return {
            **super().state_dict(),
            "successes": self.successes.state_dict(),
            "answered": sorted(self._answered),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.successes = self._no_successes()
        self.successes.load_state_dict(state["successes"])
        self._answered = set(state["answered"])

    def _draw(self, contexts: Sequence[str], seeds: Sequence[int], *, share: float) -> list[str]:
        """Return one attack per context, as if none had been sent before."""
        sources = [self._source(Random(derive_seed(seed, "source")), share) for seed in seeds]
        attacks = [""] * len(contexts)
        for is_own in (True, False):
            rows = [row for row, source in enumerate(sources) if (source is None) is is_own]
            if not rows:
                continue
            asked = [contexts[row] for row in rows]
            with row_seeds([seeds[row] for row in rows]):
                written = (
                    self.problem.rollout_prompt_with_attacker(asked)
                    if is_own
                    else self.problem.mutate_attacks(
                        asked,
                        [source for source in sources if source is not None],
                        temperature=self.temperature,
                    )
                )
            check_length(written, len(rows), source="the attacker")
            for row, attack in zip(rows, written, strict=True):
                attacks[row] = attack
        return attacks

    def _source(self, random: Random, share: float) -> str | None:
        """Return the success to mutate; None if the attacker writes."""
        if not self.successes.kinds or random.random() >= share:
            return None
        return self.successes.draw(random)

    def _is_repeated(self, context: str, attack: str) -> bool:
        if isinstance(attack, NoAttack | NoReply):
            return False
        return _digest(context, attack) in self._answered


def _digest(context: str, attack: str) -> str:
    """Return a digest of an attack in its context."""
    conversation = Conversation.of(context)
    said = [str(turn) for turn in conversation.turns]  # the same text of other tokens is the same
    opening = Conversation(
        conversation.prompt, system=conversation.system, facts=conversation.facts
    )
    key = repr((context_key(opening), said, str(attack).strip()))
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _check(share: float, temperature: float, redraws: int, threshold: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigurationError(f"share={share}; it must be in [0, 1].")
    if not 0 < temperature < math.inf:
        raise ConfigurationError(f"temperature={temperature}; it must be positive.")
    if redraws < 0:
        raise ConfigurationError(f"redraws={redraws}; it must be 0 or more.")
    if not 0 < threshold <= 1:
        raise ConfigurationError(f"threshold={threshold}; it must be above 0 and at most 1.")
