"""Length-sorted micro-batches under a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_budget_batches(
    lengths: Sequence[int], *, max_tokens: int, max_rows: int
) -> Iterator[list[int]]:
    """Partition rows into batches of similar length.

    Args:
        lengths: Number of tokens per row.
        max_tokens: Maximum number of tokens per batch, padding included. A longer row forms a batch
            of its own.
        max_rows: Maximum number of rows per batch.

    Yields:
        Indices into `lengths`, longest rows first.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batch: list[int] = []
    for row in order:
        # Rows are sorted by decreasing length, so the first row of a batch determines its width.
        full = batch and (
            len(batch) >= max_rows or lengths[batch[0]] * (len(batch) + 1) > max_tokens
        )
        if full:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
