"""A cache around a moderator."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

from astra_rl.core.common import ActionT, StateT
from astra_rl.core.contracts import check_length, is_missing
from astra_rl.core.moderator import Moderator, count_missing
from astra_rl.core.text import Conversation, Exchange, Utterance, context_key
from astra_rl.errors import ConfigurationError


class CachedModerator(Moderator[StateT, ActionT]):
    """Caches the scores of another moderator (least recently used).

    Equal inputs of one call are scored once, and scores are kept across calls. The key is all that
    a moderator may depend on: the text and, for an `Exchange`, the attack, the response and the
    whole context with its system message, brief and facts. A missing score is not cached.

    Args:
        inner: The moderator; must give the same score for the same input.
        max_entries: Most scores in the cache.

    Attributes:
        unscored: Number of missing scores returned so far, by reason.

    Raises:
        ConfigurationError: `max_entries` is below 1.
    """

    def __init__(self, inner: Moderator[StateT, ActionT], *, max_entries: int = 10_000) -> None:
        if max_entries < 1:
            raise ConfigurationError(
                f"max_entries={max_entries}; it must be at least 1. Use the inner moderator itself "
                "to cache nothing."
            )
        self.inner = inner
        self.max_entries = max_entries
        self.unscored: Counter[str] = Counter()
        self._scores: OrderedDict[Hashable, float] = OrderedDict()

    @property
    def identity_stands_for(self) -> Moderator[StateT, ActionT]:
        """The wrapped moderator."""
        return self.inner

    def moderate(self, x: Sequence[StateT | ActionT]) -> list[float]:
        """Score each input as `inner` does; inputs that are not strings must be hashable.

        Raises:
            ContractError: `inner` returned another number of scores.
        """
        keys = [_key(item) for item in x]
        new = {key: item for key, item in zip(keys, x, strict=True) if key not in self._scores}
        # Read before anything is evicted: one call may have more inputs than the cache holds.
        known = {key: self._scores[key] for key in keys if key not in new}
        if new:
            scores = self.inner.moderate(list(new.values()))
            check_length(scores, len(new), source=type(self.inner).__name__)
            known.update(zip(new, map(_as_float, scores), strict=True))
        for key, score in known.items():
            self._keep(key, score)
        found = [known[key] for key in keys]
        self.unscored += count_missing(found)
        return found

    def forget(self) -> None:
        """Empty the cache, and let `inner` forget."""
        self._scores.clear()
        self.inner.forget()

    def _keep(self, key: Hashable, score: float) -> None:
        if is_missing(score):
            return
        self._scores[key] = score
        self._scores.move_to_end(key)
        if len(self._scores) > self.max_entries:
            self._scores.popitem(last=False)


def _as_float(score: Any) -> float:
    # float() would drop the reason of a missing Score.
    return score if isinstance(score, float) else float(score)


def _key(item: Any) -> Hashable:
    # An Exchange or Conversation equals any string of the same text, so its parts are the key.
    if isinstance(item, Exchange):
        return (
            "exchange",
            context_key(item.context),
            str(item.attack),
            Utterance.of(item.response).key,
            str(item),
        )
    if isinstance(item, Conversation):
        return ("conversation", context_key(item))
    return str(item) if isinstance(item, str) else ("other", item)
