"""Limit of the tokens of forward passes with gradients, whose activations take most of the memory.

A training loop opens `at_most_tokens` around the loss of a batch. What computes a forward pass
calls `count_tokens` before it; if the tokens of the batch are too many, `TooManyTokens` is raised
before anything is computed, and the loop computes the batch in parts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch


class TooManyTokens(Exception):
    """A batch has more tokens than a backward pass may have."""


class _Count:
    """Tokens of the forward passes of a batch so far, and their limit; None: that of the caller."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.tokens = limit, 0


_COUNT: ContextVar[_Count | None] = ContextVar("tokens of a batch", default=None)


@contextlib.contextmanager
def at_most_tokens(limit: int | None) -> Iterator[None]:
    """Context in which forward passes with gradients have at most this number of tokens together.

    Args:
        limit: The number; None: the one that is given to `count_tokens`.
    """
    token = _COUNT.set(_Count(limit))
    try:
        yield
    finally:
        _COUNT.reset(token)


def count_tokens(tokens: int, default: Callable[[], int]) -> None:
    """Count the tokens of a forward pass that is about to be computed.

    Outside of `at_most_tokens`, and without gradients, nothing is counted.

    Args:
        tokens: Tokens, padding included.
        default: Returns the limit where `at_most_tokens` has none.

    Raises:
        TooManyTokens: With those before, they are more than the limit.
    """
    count = _COUNT.get()
    if count is None or not torch.is_grad_enabled():
        return
    count.tokens += tokens
    if count.tokens > (default() if count.limit is None else count.limit):
        raise TooManyTokens
