"""Replay buffer of the best attacks so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from random import Random
from typing import Any

from astra_rl.core.contracts import is_missing
from astra_rl.core.serialization import from_record, to_record
from astra_rl.core.text import context_key
from astra_rl.core.word_sets import jaccard, word_set
from astra_rl.errors import ConfigurationError


@dataclass(frozen=True)
class ReplayEntry:
    """An attack in a replay buffer.

    Attributes:
        context: State before the attack.
        attack: The attack.
        reward: Its reward.
        reference: Its log-probability under the frozen reference, in nats; None if not known.
    """

    context: str
    attack: str
    reward: float
    reference: float | None = None


class Replay:
    """Replay buffer that keeps the attacks of the highest rank, without near-duplicates.

    Of two near-duplicates of the same context the one with the higher rank stays; when the buffer
    is full, the attack with the lowest rank is dropped.

    Args:
        capacity: Maximum number of attacks; 0 keeps none.
        similarity: Jaccard similarity of words, in (0, 1], from which on two attacks are
            near-duplicates.
        min_reward: Minimum reward of an attack to be added.
        rank: Returns the rank of an attack; None is its reward.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        capacity: int = 1000,
        similarity: float = 0.8,
        min_reward: float = -math.inf,
        *,
        rank: Callable[[ReplayEntry], float] | None = None,
    ) -> None:
        if capacity < 0:
            raise ConfigurationError(f"replay={capacity}; it must be 0 or more.")
        if not 0 < similarity <= 1:
            raise ConfigurationError(f"replay_similarity={similarity}; it must be in (0, 1].")
        self.capacity = capacity
        self.similarity = similarity
        self.min_reward = min_reward
        self.rank = attrgetter("reward") if rank is None else rank
        self._by_context: dict[Hashable, list[ReplayEntry]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_context.values()))

    @property
    def entries(self) -> list[ReplayEntry]:
        """All entries, highest rank first."""
        everything = [entry for rows in self._by_context.values() for entry in rows]
        return sorted(everything, key=lambda entry: -self.rank(entry))

    def add(self, entries: Iterable[ReplayEntry]) -> None:
        """Add attacks, except those with a missing or low reward, and worse near-duplicates."""
        for entry in entries:
            if self.capacity and not is_missing(entry.reward) and entry.reward >= self.min_reward:
                self._add(entry)
        surplus = len(self) - self.capacity
        if surplus > 0:
            for entry in self.entries[-surplus:]:
                key = context_key(entry.context)
                rows = self._by_context[key]
                rows.remove(entry)
                if not rows:
                    del self._by_context[key]

    def sample(
        self, context: str, count: int, random: Random, *, temperature: float
    ) -> list[ReplayEntry]:
        """Draw attacks of a context without replacement, weighted by their rewards.

        Args:
            context: The context.
            count: Maximum number of attacks.
            random: Source of randomness.
            temperature: The weight of an attack is ``exp(reward / temperature)``; infinity draws
                uniformly.
        """
        rows = self._by_context.get(context_key(context), [])
        # The largest of (log weight + Gumbel noise) are a weighted draw without replacement.
        noisy = [
            (entry.reward / temperature - math.log(random.expovariate(1.0)), index)
            for index, entry in enumerate(rows)
        ]
        return [rows[index] for _, index in sorted(noisy, reverse=True)[:count]]

    def state_dict(self) -> dict[str, Any]:
        """Return the entries as JSON values."""
        return {
            "entries": [
                [to_record(entry.context), to_record(entry.attack), entry.reward, entry.reference]
                for rows in self._by_context.values()
                for entry in rows
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._by_context = {}
        for context, attack, reward, reference in state["entries"]:
            entry = ReplayEntry(from_record(context), from_record(attack), reward, reference)
            self._by_context.setdefault(context_key(entry.context), []).append(entry)

    def _add(self, entry: ReplayEntry) -> None:
        rows = self._by_context.setdefault(context_key(entry.context), [])
        words = word_set(entry.attack)
        alike = [
            other
            for other in rows
            if other.attack == entry.attack
            or jaccard(words, word_set(other.attack)) >= self.similarity
        ]
        if any(self.rank(other) >= self.rank(entry) for other in alike):
            return
        for other in alike:
            rows.remove(other)
        rows.append(entry)
