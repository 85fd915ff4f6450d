"""How the work of a training step is divided: not at all, or in parts over several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.environment import Environment
from astra_rl.core.row_scoring import ScoreRows, scoring_by
from astra_rl.distributed.environment import DividedEnvironment
from astra_rl.distributed.parts import owner, spans
from astra_rl.distributed.ranks import Ranks
from astra_rl.errors import ConfigurationError
from astra_rl.training.config import TrainingConfiguration
from astra_rl.training.gradients import DividedGradients, Gradients, LossOf, ShardedGradients
from astra_rl.training.precision import build_optimizer, optimizer_factory
from astra_rl.training.sharding import ShardedWeightOptimizer


class Division:
    """A step in one process, undivided.

    Args:
        max_tokens: See `UpdateSettings.micro_batch_tokens`.

    Attributes:
        ranks: The processes.
    """

    def __init__(self, *, max_tokens: int | None = None) -> None:
        self.ranks, self.max_tokens = Ranks(), max_tokens

    def environment(self, environment: Environment[Any, Any]) -> Environment[Any, Any]:
        """Return what plays the episodes."""
        return environment

    def scoring(self) -> AbstractContextManager[None]:
        """Return a context in which log-probabilities without gradients are computed."""
        return contextlib.nullcontext()

    def gradients(
        self,
        algorithm: Algorithm[Any, Any, Any, Any],
        loss_of: LossOf[Any],
        optimizer: Optimizer,
    ) -> Gradients[Any]:
        """Return what computes the gradient of an optimizer step."""
        return Gradients(algorithm, loss_of, optimizer, max_tokens=self.max_tokens)

    def optimizer(
        self, parameters: Sequence[Parameter], kind: type[Optimizer], **options: Any
    ) -> Optimizer:
        """Return the optimizer of the trained parameters; see `build_optimizer`."""
        return build_optimizer(kind, parameters, **options)

    def answering(self, together: bool = True) -> AbstractContextManager[None]:
        """Return a context in which the first process alone may ask for the training state.

        Args:
            together: Whether all processes open and close it; if not, the first may not.
        """
        return contextlib.nullcontext()


class InParts(Division):
    """A step in parts, which do not depend on the number of processes.

    Args:
        environment: Plays the episodes of a part.
        ranks: The processes.
        parts: Number of parts.
        exact: Whether the result is the same, to the last bit, for any number of processes.
        max_tokens: See `Division`.
    """

    def __init__(
        self,
        environment: Environment[Any, Any],
        ranks: Ranks,
        parts: int,
        *,
        exact: bool,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(max_tokens=max_tokens)
        self.ranks, self.parts, self.exact = ranks, parts, exact
        self.problem = environment.problem

    def environment(self, environment: Environment[Any, Any]) -> Environment[Any, Any]:
        """See `Division.environment`."""
        return DividedEnvironment(environment, self.ranks, self.parts)

    def scoring(self) -> AbstractContextManager[None]:
        """See `Division.scoring`; the rows of a call are scored in parts."""
        return scoring_by(self._score)

    def gradients(
        self,
        algorithm: Algorithm[Any, Any, Any, Any],
        loss_of: LossOf[Any],
        optimizer: Optimizer,
    ) -> Gradients[Any]:
        """See `Division.gradients`."""
        return DividedGradients(
            algorithm,
            loss_of,
            optimizer,
            ranks=self.ranks,
            parts=self.parts,
            exact=self.exact,
            max_tokens=self.max_tokens,
        )

    def _score(
        self, score: ScoreRows, contexts: Sequence[Any], continuations: Sequence[Any]
    ) -> Tensor:
        parts = spans(len(contexts), self.parts)
        if not parts:
            return score(contexts, continuations)
        mine: list[Tensor] = []
        with self.ranks.together(), scoring_by(None):
            for part, span in enumerate(parts):
                if owner(part, len(parts), self.ranks.size) == self.ranks.rank:
                    self.problem.forget_scores()  # they depend on the rows of their batch
                    rows = slice(span.start, span.stop)
                    mine.append(score(contexts[rows], continuations[rows]).detach())
            self.problem.forget_scores()
        return self._joined(mine, [len(span) for span in parts])

    def _joined(self, mine: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """Return the rows of all parts, padded with zeros to the width of the longest."""
        shapes = self.ranks.gather_json([list(each.shape) for each in mine])
        kinds = self.ranks.gather_json(str(mine[0].dtype).removeprefix("torch.") if mine else None)
        dtype = getattr(torch, next(each for each in kinds if each is not None))
        device = next(iter(self.problem.parameters())).device
        found: list[Tensor] = []
        for rank, data in enumerate(self.ranks.gather(_bytes_of(mine))):
            if rank == self.ranks.rank:
                found += mine
                continue
            flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0)
            sizes = [_product(shape) for shape in shapes[rank]]
            found += [
                each.view(shape).to(device)
                for each, shape in zip(torch.split(flat, sizes), shapes[rank], strict=True)
            ]
        return pad_sequence([row for each in found for row in each], batch_first=True)


class Sharded(InParts):
    """A step in parts, with the weights to be updated in shards; see `ShardedWeightOptimizer`.

    Args:
        environment: Plays the episodes of a part.
        ranks: The processes, more than one.
        parts: Number of parts.
        max_tokens: See `Division`.
    """

    def __init__(
        self,
        environment: Environment[Any, Any],
        ranks: Ranks,
        parts: int,
        *,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(environment, ranks, parts, exact=False, max_tokens=max_tokens)
        if ranks.shared_devices:
            raise ConfigurationError(
                f"sharding: fsdp needs a GPU for each of the {ranks.size} processes, and some "
                "share one. Start one process per GPU, or use sharding: replicated."
            )

    def gradients(
        self,
        algorithm: Algorithm[Any, Any, Any, Any],
        loss_of: LossOf[Any],
        optimizer: Optimizer,
    ) -> Gradients[Any]:
        """See `Division.gradients`."""
        return ShardedGradients(
            algorithm,
            loss_of,
            self._shards,
            ranks=self.ranks,
            parts=self.parts,
            max_tokens=self.max_tokens,
        )

    def optimizer(
        self, parameters: Sequence[Parameter], kind: type[Optimizer], **options: Any
    ) -> Optimizer:
        """See `Division.optimizer`."""
        factory = optimizer_factory(kind, **options)
        self._shards = ShardedWeightOptimizer(parameters, factory, self.ranks)
        return self._shards

    def answering(self, together: bool = True) -> AbstractContextManager[None]:
        """See `Division.answering`."""
        return self._shards.answering(together)


def _bytes_of(tensors: Sequence[Tensor]) -> bytes:
    if not tensors:
        return b""
    flat = torch.cat([each.cpu().flatten() for each in tensors])
    return flat.view(torch.uint8).numpy().tobytes()


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def divide(
    config: TrainingConfiguration, environment: Environment[Any, Any], ranks: Ranks
) -> Division:
    """Return how a training is divided: `config.shards` parts, by default one per process."""
    parts = config.shards or ranks.size
    if parts == 1 and ranks.size == 1:
        return Division(max_tokens=config.micro_batch_tokens)
    if config.sharding == "fsdp" and ranks.size > 1:
        return Sharded(environment, ranks, parts, max_tokens=config.micro_batch_tokens)
    return InParts(
        environment,
        ranks,
        parts,
        exact=config.reduction != "fast",
        max_tokens=config.micro_batch_tokens,
    )
