"""Out of memory: half the batch, the same result."""

import logging

import pytest
import torch

from astra_rl.core.algorithm import halves_by_row
from astra_rl.core.out_of_memory import in_batches, is_out_of_memory
from astra_rl.errors import ModelError, OutOfMemoryError

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    MemoryError(),
)


@pytest.mark.slow
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_a_batch_that_is_too_large_is_halved_until_it_fits(error, caplog):
    tried = []

    def run(rows):
        tried.append(len(rows))
        if len(rows) > 2:
            raise error
        return [10 * row for row in rows]

    with caplog.at_level(logging.WARNING):
        done = list(in_batches([[0, 1, 2, 3, 4], [5]], run, doing="sampling"))
    found = {row: value for rows, values in done for row, value in zip(rows, values, strict=True)}
    assert found == {row: 10 * row for row in range(6)}
    assert [row for rows, _ in done for row in rows] == [0, 1, 2, 3, 4, 5]
    assert tried[0] == 5
    assert "out of memory while sampling: retrying with 3 rows instead of 5" in caplog.text


def test_a_single_row_that_does_not_fit_is_a_named_error():
    def run(rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError, match="out of memory while scoring, with a single row"):
        list(in_batches([[0, 1]], run, doing="scoring"))
    assert issubclass(OutOfMemoryError, ModelError)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def run(rows):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(in_batches([[0, 1]], run, doing="scoring"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_only_index_aligned_batches_are_cut():
    assert halves_by_row((1, 2)) is None
    assert halves_by_row(torch.zeros(4)) is None
