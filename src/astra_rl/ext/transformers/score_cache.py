"""Cache of the log-probabilities of attacks under a frozen model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

from astra_rl.core.text import Utterance, context_key


class ScoreCache(threading.local):
    """Keeps recent log-probabilities, because reward and algorithm often score the same attacks.

    Each thread has its own: with episodes played ahead, which of two threads scores an attack first
    is chance, and the last digits depend on the batch that it is scored in.

    Args:
        max_entries: Number of attacks from which on the cache is emptied before it grows.
    """

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._rows: dict[Hashable, Tensor] = {}

    def scores(
        self,
        contexts: Sequence[str],
        attacks: Sequence[str],
        score: Callable[[Sequence[str], Sequence[str]], Tensor],
    ) -> list[Tensor]:
        """Return the log-probabilities of the tokens of each attack; the new ones are computed.

        Args:
            contexts: Contexts of the attacks.
            attacks: As many attacks.
            score: Returns log-probabilities of contexts and attacks, (B, T), padded with zeros.
        """
        keys = [
            (context_key(context), str(attack), Utterance.of(attack).token_ids)
            for context, attack in zip(contexts, attacks, strict=True)
        ]
        if len(self._rows) + len(keys) > self.max_entries:
            self._rows.clear()
        new = {key: row for row, key in enumerate(keys) if key not in self._rows}
        if new:
            rows = list(new.values())
            scored = score([contexts[row] for row in rows], [attacks[row] for row in rows])
            counts = (scored != 0).sum(dim=1).tolist()  # zeros are padding, on the right
            for key, row, count in zip(new, scored, counts, strict=True):
                self._rows[key] = row[:count].clone()
        return [self._rows[key] for key in keys]

    def clear(self) -> None:
        """Remove all entries."""
        self._rows.clear()
