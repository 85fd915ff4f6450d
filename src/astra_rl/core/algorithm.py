"""How an attacker learns from episodes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from typing import Any, ClassVar, Generic

from torch import Tensor

from astra_rl.core.collector import Collector
from astra_rl.core.common import ActionT, BatchT, Metrics, StateT, StepT
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.errors import ConfigurationError


class Algorithm(ABC, Generic[StateT, ActionT, StepT, BatchT]):
    """Graphs to steps, steps to a batch, a batch to a loss.

    Args:
        problem: Gives the log-probabilities that the loss is made of.

    Attributes:
        collector: Decides which episodes make an experience.
        epochs: How often the batches of one experience are learned from.
        needs_exact_sampling: Whether attacks must be sampled from the very distribution that is
            trained: temperature 1, no top_k, no top_p.

    Raises:
        ConfigurationError: The problem lacks what the algorithm needs, see `check_problem`.
    """

    collector: Collector = Collector()
    epochs: int = 1
    needs_exact_sampling: ClassVar[bool] = False
    problem: Problem[StateT, ActionT]

    def __init__(self, problem: Problem[StateT, ActionT] | None) -> None:
        if problem is not None:
            self.bind(problem)

    def bind(self, problem: Problem[StateT, ActionT]) -> None:
        """Attach the problem to an algorithm that was constructed with None in its place.

        Raises:
            ConfigurationError: See `check_problem`.
        """
        self.check_problem(problem)
        self.problem = problem

    def check_problem(self, problem: Problem[StateT, ActionT]) -> None:
        """Raise unless a problem has what the algorithm needs.

        Raises:
            ConfigurationError: Its attacker does not sample exactly, and the algorithm needs it.
        """
        self.check_sampling(is_exact=problem.samples_exactly)

    @classmethod
    def check_sampling(cls, *, is_exact: bool) -> None:
        """Raise if the algorithm needs exact sampling and does not get it.

        Raises:
            ConfigurationError: So it is.
        """
        if cls.needs_exact_sampling and not is_exact:
            raise ConfigurationError(
                f"{cls.__name__} needs attacks sampled from the distribution it trains: "
                "temperature 1, no top_k, no top_p. Change the attacker's sampling, or use DPO or "
                "IPO."
            )

    @classmethod
    def binds_late(cls) -> bool:
        """Whether its options can be checked before there is a problem.

        All constructors of this library accept None as the problem; one of a class of your own may
        read its problem, so it is only called with a real one.
        """
        package = __name__.partition(".")[0]
        constructors = [vars(kind)["__init__"] for kind in cls.__mro__ if "__init__" in vars(kind)]
        return all(
            getattr(each, "__module__", package).partition(".")[0] == package
            for each in constructors
            if each is not object.__init__
        )

    @abstractmethod
    def flatten(self, graph: Graph[StateT, ActionT]) -> Sequence[StepT]:
        """Cut one episode into steps.

        A node with a missing reward teaches nothing: it makes no step here, or none that `prepare`
        keeps.
        """

    def prepare(self, steps: Sequence[StepT]) -> Sequence[StepT]:
        """Complete the steps of a whole experience, once, before they are batched.

        Here belongs all that needs no gradient or looks at several episodes: reference
        log-probabilities, values, advantages. The default changes nothing.
        """
        return steps

    @abstractmethod
    def collate_fn(self, steps: Sequence[StepT]) -> BatchT:
        """Make a batch of several steps."""

    @abstractmethod
    def step(self, batch: BatchT) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch, a scalar that requires grad, and numbers to log.

        The loss is the mean over the steps of the batch; it changes neither with padding nor with
        the order of the rows, and the mean over micro-batches weighted by `weight` equals the
        loss of the whole.
        """

    def weight(self, batch: BatchT) -> float:
        """How much a micro-batch counts beside others of the same optimiser step.

        The default is its number of rows, if it has a length, else 1.
        """
        return float(len(batch)) if isinstance(batch, Sized) else 1.0

    def halves(self, batch: BatchT) -> tuple[BatchT, BatchT] | None:
        """Cut a batch in two, for when memory is not enough for the whole; None if it cannot be.

        The two must teach what the whole would, as `weight` weighs them. The default cuts a
        dataclass whose fields are sequences or tensors of one entry per row, or None.
        """
        return halves_by_row(batch)

    @classmethod
    def values_needed(cls, **options: Any) -> int:
        """Return how many returns its problem must estimate, see `ValueFunctionProblem.values`.

        Args:
            options: Keyword arguments of the constructor.
        """
        return 0

    @classmethod
    def terms_needed(cls, **options: Any) -> Sequence[str]:
        """Return the names of reward terms that it uses besides the reward itself.

        Args:
            options: Keyword arguments of the constructor.
        """
        return ()

    def experience_metrics(self) -> Metrics:
        """Return numbers about the experience that was prepared last."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a restart besides the weights, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


def halves_by_row(batch: Any, at: int | None = None) -> tuple[Any, Any] | None:
    """Cut an index-aligned batch in two; None if it is of another kind, or cannot be cut.

    Args:
        batch: A dataclass whose fields are sequences or tensors of one entry per row, or None.
        at: The first row of the second half; None is the middle.
    """
    if not dataclasses.is_dataclass(batch) or isinstance(batch, type):
        return None
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    columns = [value for value in fields.values() if value is not None]
    if not columns or not all(isinstance(each, Sized) and not _is_scalar(each) for each in columns):
        return None
    rows = len(columns[0])
    at = rows // 2 if at is None else at
    if any(len(each) != rows for each in columns) or not 0 < at < rows:
        return None

    def part(span: slice) -> Any:
        cut = {name: None if each is None else each[span] for name, each in fields.items()}
        return dataclasses.replace(batch, **cut)

    return part(slice(None, at)), part(slice(at, None))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bytes | dict | set) or (
        isinstance(value, Tensor) and value.ndim == 0
    )
