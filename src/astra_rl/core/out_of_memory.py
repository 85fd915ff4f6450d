"""Recovery from out of memory: a batch that does not fit is run in halves."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from astra_rl.errors import OutOfMemoryError
from astra_rl.logging import logger

ResultT = TypeVar("ResultT")

_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator and some backends raise a RuntimeError with a telling message.
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def release_memory() -> None:
    """Free the memory of a failed attempt. Call it outside the `except` block.

    Inside it, the traceback still holds the tensors.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_batches(
    batches: Iterable[Sequence[int]],
    run: Callable[[Sequence[int]], ResultT],
    *,
    doing: str,
    release: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Sequence[int], ResultT]]:
    """Run each batch; after out of memory, run its halves separately.

    The result of a row must not depend on the rest of its batch, so that results are the same up to
    rounding.

    Args:
        batches: Row indices of each batch.
        run: Runs the rows of a batch.
        doing: The activity, to follow "out of memory while".
        release: Called after a failed attempt, to free caches.

    Yields:
        Row indices that were run together, and their result.

    Raises:
        OutOfMemoryError: A single row does not fit in memory.
    """
    for batch in batches:
        waiting = [batch]
        while waiting:
            rows = waiting.pop()
            try:
                result = run(rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) < 2:
                    raise OutOfMemoryError(
                        f"out of memory while {doing}, with a single row. Use a smaller model or "
                        "dtype, fewer new tokens, or shorter conversations."
                    ) from error
            else:
                yield rows, result
                continue
            release()
            release_memory()
            half = len(rows) // 2
            logger.warning(
                "out of memory while %s: retrying with %d rows instead of %d",
                doing,
                len(rows) - half,
                len(rows),
            )
            waiting += [rows[half:], rows[:half]]
