"""How log-probabilities without gradients are computed: in one call, or part by part.

A training on several processes scores the attacks of an experience in parts, one process each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ScoreRows = Callable[[Sequence[Any], Sequence[Any]], "Tensor"]
"""Returns one row of a tensor (B, T) or (B, T, K) per context and continuation, padded with zeros
in T."""
RunScoring = Callable[[ScoreRows, Sequence[Any], Sequence[Any]], "Tensor"]
"""Returns what a `ScoreRows` returns for these contexts and continuations."""

_running: ContextVar[RunScoring | None] = ContextVar("row_scoring", default=None)


@contextlib.contextmanager
def scoring_by(run: RunScoring | None) -> Iterator[None]:
    """Compute log-probabilities inside the block by `run`; None is one call for all rows."""
    token = _running.set(run)
    try:
        yield
    finally:
        _running.reset(token)


def score_rows(score: ScoreRows, contexts: Sequence[Any], continuations: Sequence[Any]) -> Tensor:
    """Return ``score(contexts, continuations)`` as the enclosing `scoring_by` computes it.

    Call it for scores that need no gradient; all processes of a training call it alike.
    """
    run = _running.get()
    return score(contexts, continuations) if run is None else run(score, contexts, continuations)
