"""Going on with half a batch where the memory of the device is not enough for the whole."""

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
    """Whether an error says that there was not enough memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator and some backends raise a RuntimeError that only its text tells apart.
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def release_memory() -> None:
    """Give back what a failed attempt left behind. Call it outside of the `except` block.

    Inside of it the traceback still holds the tensors.
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
    """Run each batch, and where memory is not enough each half of it by itself.

    A row's result must not depend on the rest of its batch, as that of all models here does not;
    so what comes out is the same, to the rounding of the device, and only later.

    Args:
        batches: Numbers of the rows that are run together.
        run: Runs some of them.
        doing: What is done, as in "out of memory while ...".
        release: Called after a failed attempt, to let go of what is kept for speed only.

    Yields:
        Rows that were run together, and what came of them.

    Raises:
        OutOfMemoryError: Memory is not enough for a single row.
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
                "out of memory while %s: going on with %d rows instead of %d",
                doing,
                len(rows) - half,
                len(rows),
            )
            waiting += [rows[half:], rows[:half]]
