"""Gradients of the batches of one optimizer step: in one process, or divided among several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import BatchT, Metrics
from astra_rl.core.contracts import check_loss, is_missing
from astra_rl.core.out_of_memory import is_out_of_memory, release_memory
from astra_rl.core.token_limit import TooManyTokens, at_most_tokens
from astra_rl.core.turns import give_way
from astra_rl.distributed.parts import owner
from astra_rl.distributed.ranks import Ranks, is_raised_by_all, noticing_loss, pack_error
from astra_rl.distributed.tree_sum import TreeSum
from astra_rl.errors import OutOfMemoryError, ProcessLostError
from astra_rl.logging import logger
from astra_rl.training.sharding import ShardedWeightOptimizer

LossOf = Callable[[BatchT], tuple[Tensor, Metrics]]
"""Returns the loss of a batch and metrics, see `Algorithm.step`."""


class Piece(NamedTuple):
    """Result of the backward pass of a batch, or of a part of one."""

    batch: int
    weight: float
    finite: bool
    logs: Metrics


class Gradients(Generic[BatchT]):
    """Computes the gradient of an optimizer step in this process, batch by batch.

    Args:
        algorithm: Weights and splits batches.
        loss_of: Computes the loss of a batch.
        optimizer: Its parameters get the gradient.
        max_tokens: See `UpdateSettings.micro_batch_tokens`.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any, Any, Any, BatchT],
        loss_of: LossOf[BatchT],
        optimizer: Optimizer,
        *,
        max_tokens: int | None = None,
    ) -> None:
        self.algorithm, self.loss_of, self.optimizer = algorithm, loss_of, optimizer
        self.max_tokens = max_tokens

    def compute(self, group: Sequence[BatchT]) -> tuple[list[Metrics], bool]:
        """Set the gradients to those of a group; return a log per batch, and if all were finite.

        Batches are weighted by `Algorithm.weight`, so the gradient is that of the whole group as
        one batch.
        """
        pieces = self.accumulate(list(enumerate(group)), self.total(group))
        return logs_by_batch(pieces, len(group)), all(piece.finite for piece in pieces)

    def total(self, group: Sequence[BatchT]) -> float:
        """Return the sum of the weights of a group."""
        return math.fsum(map(self.algorithm.weight, group)) or 1.0

    def accumulate(self, given: Sequence[tuple[int, BatchT]], total: float) -> list[Piece]:
        """Set the gradients to the sum of those of batches, each given with its number.

        A batch with too many tokens is computed in parts. A batch that runs out of memory is split
        in two and all are started again, because gradients may have been accumulated in part. The
        sum stays the same.

        Raises:
            OutOfMemoryError: A batch that cannot be split runs out of memory.
        """
        pieces = list(given)
        while True:
            self.optimizer.zero_grad()
            done: list[list[Piece]] = []
            failure, halves = None, None
            try:
                for index, batch in pieces:
                    done.append(self._add_in_parts(index, batch, total))
            except Exception as error:
                failure = error
                if is_out_of_memory(error) and not is_raised_by_all(error):
                    failure, halves = self._without_memory(pieces[len(done)][1], error)
            if not self._starts_again(failure, is_split=halves is not None):
                return [piece for parts in done for piece in parts]
            if halves is not None:
                index, _ = pieces[len(done)]
                pieces[len(done) : len(done) + 1] = [(index, half) for half in halves]
                release_memory()
                logger.warning(
                    "out of memory in an update: retrying with half of the batch at a time"
                )

    def clip(self, limit: float | None) -> float:
        """Clip the norm of the gradients, None does not; return the norm before."""
        parameters, limit = self.parameters(), math.inf if limit is None else limit
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def parameters(self) -> list[Tensor]:
        """Return the tensors that the optimizer updates."""
        return [each for group in self.optimizer.param_groups for each in group["params"]]

    def _without_memory(
        self, batch: BatchT, error: Exception
    ) -> tuple[Exception | None, Sequence[BatchT] | None]:
        """Return the halves of a batch that ran out of memory; the error if it has none."""
        halves = self.algorithm.halves(batch)
        if halves is not None:
            return None, halves
        failure = OutOfMemoryError(
            "out of memory in an update, with a batch that cannot be split further. "
            "Use a smaller model or dtype, a LoRA adapter, or shorter conversations."
        )
        failure.__cause__ = error
        return failure, None

    def _starts_again(self, failure: Exception | None, *, is_split: bool) -> bool:
        """Raise a failure; return whether a batch was split, so that all are started again."""
        if failure is not None:
            raise failure
        return is_split

    def _add_in_parts(self, index: int, batch: BatchT, total: float) -> list[Piece]:
        """Add the gradient of a batch, in halves of halves while they have too many tokens."""
        halves = self.algorithm.halves(batch)
        if halves is None:
            return [self._add(index, batch, total)]
        try:
            with at_most_tokens(self.max_tokens):
                return [self._add(index, batch, total)]
        except TooManyTokens:
            pass
        return [each for half in halves for each in self._add_in_parts(index, half, total)]

    def _add(self, index: int, batch: BatchT, total: float) -> Piece:
        weight = self.algorithm.weight(batch)
        loss, logs = self.loss_of(batch)
        check_loss(loss, source=f"{type(self.algorithm).__name__}.step")
        finite = bool(torch.isfinite(loss.detach()))
        self._backward(loss * (weight / total))
        give_way()
        return Piece(index, weight, finite, dict(logs or {}))

    def _backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


class DividedGradients(Gradients[BatchT]):
    """Computes the gradient of an optimizer step with all processes of a training.

    The batches are split into leaves, which do not depend on the number of processes. With
    `exact`, the gradients of the leaves are added in one fixed binary tree, so that the sum is the
    same, to the last bit, for any number of processes. Else each process adds up those of its own
    leaves, and the sums are reduced in the order that is fastest.

    Args:
        algorithm: See `Gradients`.
        loss_of: See `Gradients`.
        optimizer: See `Gradients`.
        ranks: The processes.
        parts: Least number of leaves of an optimizer step, if its batches can be split so far.
        exact: Whether the sum is that of the fixed tree.
        max_tokens: See `Gradients`.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any, Any, Any, BatchT],
        loss_of: LossOf[BatchT],
        optimizer: Optimizer,
        *,
        ranks: Ranks,
        parts: int,
        exact: bool,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(algorithm, loss_of, optimizer, max_tokens=max_tokens)
        self.ranks, self.parts, self.exact = ranks, parts, exact

    def compute(self, group: Sequence[BatchT]) -> tuple[list[Metrics], bool]:
        """See `Gradients.compute`; the same in every process."""
        leaves = list(self._leaves(group))
        total = self.total(group)
        pieces: list[Piece] = []

        def gradient_of(given: Sequence[tuple[int, BatchT]]) -> Tensor:
            pieces.extend(self.accumulate(given, total))
            return self._taken()

        tree = TreeSum(self.ranks, len(leaves))
        with self.ranks.together():
            if self.exact:
                tree.compute(lambda leaf: gradient_of([leaves[leaf]]))
                room = self._taken()
            else:
                local = gradient_of([leaves[leaf] for leaf in self._mine(len(leaves))])
        if self.exact:
            self._set(tree.exchange(room))
        else:
            self.ranks.add(local)
            self._set(local)
        return self._logs(pieces, len(group))

    def _logs(self, pieces: Sequence[Piece], count: int) -> tuple[list[Metrics], bool]:
        """Return what `compute` does, of the batches of all processes."""
        every = [Piece(*each) for part in self.ranks.gather_json(pieces) for each in part]
        return logs_by_batch(every, count), all(piece.finite for piece in every)

    def _mine(self, count: int) -> list[int]:
        size, rank = self.ranks.size, self.ranks.rank
        return [leaf for leaf in range(count) if owner(leaf, count, size) == rank]

    def _leaves(self, group: Sequence[BatchT]) -> Iterator[tuple[int, BatchT]]:
        """Yield the leaves of a group, each with the number of its batch."""
        depth = max(0, math.ceil(math.log2(self.parts / len(group))))
        for number, batch in enumerate(group):
            for leaf in self._split(batch, depth):
                yield number, leaf

    def _split(self, batch: BatchT, depth: int) -> list[BatchT]:
        halves = self.algorithm.halves(batch) if depth else None
        if halves is None:
            return [batch]
        return [leaf for half in halves for leaf in self._split(half, depth - 1)]

    def _taken(self) -> Tensor:
        """Return the gradients of all parameters as one vector, and for each whether it has one."""
        parameters = self.parameters()
        dtype = torch.float64 if parameters[0].dtype == torch.float64 else torch.float32
        columns = [
            torch.zeros_like(each, dtype=dtype) if each.grad is None else each.grad.to(dtype)
            for each in parameters
        ]
        present = [float(each.grad is not None) for each in parameters]
        flags = torch.tensor(present, dtype=dtype, device=columns[0].device)
        return torch.cat([*(each.flatten() for each in columns), flags])

    def _set(self, summed: Tensor) -> None:
        """Set the gradients to a sum of vectors of `_taken`."""
        parameters = self.parameters()
        sizes = [*(each.numel() for each in parameters), len(parameters)]
        *columns, flags = torch.split(summed, sizes)
        for parameter, column, count in zip(parameters, columns, flags.tolist(), strict=True):
            gradient = column.view_as(parameter).to(parameter.dtype)
            parameter.grad = gradient if count else None


class ShardedGradients(DividedGradients[BatchT]):
    """Computes the gradient of an optimizer step into the shards of all processes.

    The processes meet before each backward pass, and add up its gradients during it. One that has
    no further pass takes part with zeros, and so does one that fails in its pass; the failure is
    told at the next meeting. Thus no process waits for another in vain: if one runs out of memory
    all start again, and any other error of one is raised in all.

    Args:
        algorithm: See `Gradients`.
        loss_of: See `Gradients`.
        optimizer: Its shards get the gradient.
        ranks: The processes.
        parts: See `DividedGradients`.
        max_tokens: See `Gradients`.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any, Any, Any, BatchT],
        loss_of: LossOf[BatchT],
        optimizer: ShardedWeightOptimizer,
        *,
        ranks: Ranks,
        parts: int,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(
            algorithm,
            loss_of,
            optimizer,
            ranks=ranks,
            parts=parts,
            exact=False,
            max_tokens=max_tokens,
        )
        self.shards = optimizer

    def compute(self, group: Sequence[BatchT]) -> tuple[list[Metrics], bool]:
        """See `Gradients.compute`; the logs are the same in every process."""
        leaves = list(self._leaves(group))
        mine = [leaves[leaf] for leaf in self._mine(len(leaves))]
        pieces = self.accumulate(mine, self.total(group))
        self.shards.settle()
        return self._logs(pieces, len(group))

    def clip(self, limit: float | None) -> float:
        """See `Gradients.clip`; the norm is that of all shards."""
        parameters, limit = self.parameters(), math.inf if limit is None else limit
        with noticing_loss():
            norm: Any = torch.nn.utils.clip_grad_norm_(parameters, limit)
            return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _backward(self, loss: Tensor) -> None:
        if self._meet({"pass": True}).again:
            raise _StartAgain
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self.shards.finish()

    def _starts_again(self, failure: Exception | None, *, is_split: bool) -> bool:
        """Take part in the passes of the others; see `Gradients._starts_again`."""
        if isinstance(failure, ProcessLostError) or (failure and is_raised_by_all(failure)):
            raise failure
        if isinstance(failure, _StartAgain):
            return True
        told = {"again": is_split, "error": None if failure is None else pack_error(failure)}
        while True:
            met = self._meet(told, failure)
            if met.again or not met.passes:
                return met.again
            self.shards.finish()

    def _meet(self, told: dict[str, Any], failure: Exception | None = None) -> _Meeting:
        """Tell the others what this process does next, and raise an error of any."""
        every = self.ranks.gather_json(told)
        self.ranks.raise_first([each.get("error") for each in every], failure)
        return _Meeting(
            passes=any(each.get("pass") for each in every),
            again=any(each.get("again") for each in every),
        )


class _Meeting(NamedTuple):
    """Whether any process has a backward pass, and whether one has to start again."""

    passes: bool
    again: bool


class _StartAgain(Exception):
    """Another process ran out of memory, so that all start again."""


def logs_by_batch(pieces: Sequence[Piece], count: int) -> list[Metrics]:
    """Return the logs of each batch; of a split batch, the weighted means over its parts."""
    out: list[Metrics] = []
    for index in range(count):
        parts = [piece for piece in pieces if piece.batch == index]
        if len(parts) == 1:
            out.append(parts[0].logs)
            continue
        names = dict.fromkeys(name for part in parts for name in part.logs)
        out.append({name: _weighted_mean(parts, name) for name in names})
    return out


def _weighted_mean(parts: Sequence[Piece], name: str) -> float:
    present = [
        (part.weight, part.logs[name])
        for part in parts
        if not is_missing(part.logs.get(name, math.nan))
    ]
    total = math.fsum(weight for weight, _ in present)
    return math.fsum(weight * value for weight, value in present) / total if total else math.nan
