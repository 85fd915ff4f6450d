"""Interface to training algorithms."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence, Sized
from typing import Any, ClassVar, Generic

from torch import Tensor

from astra_rl.core.collector import Collector
from astra_rl.core.common import ActionT, BatchT, Metrics, StateT, StepT
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph, Node
from astra_rl.core.problem import Problem
from astra_rl.core.text import context_key
from astra_rl.errors import ConfigurationError
from astra_rl.infra.ranges import check_ranges


class Algorithm(ABC, Generic[StateT, ActionT, StepT, BatchT]):
    """Turns graphs into steps, steps into batches, and a batch into a loss.

    Args:
        problem: The problem whose attacker is trained.

    Attributes:
        collector: Collects the episodes of an experience.
        epochs: Passes over the steps of an experience; that of the class is the default.
        needs_exact_sampling: Whether attacks must be sampled from the distribution that is trained:
            temperature 1, no top_k, no top_p.

    Raises:
        ConfigurationError: The problem lacks what the algorithm needs, see `check_problem`.
    """

    collector: Collector = Collector()
    epochs: int = 1
    needs_exact_sampling: ClassVar[bool] = False
    problem: Problem[StateT, ActionT]

    def __init__(self, problem: Problem[StateT, ActionT]) -> None:
        self.check_problem(problem)
        self.problem = problem

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options of the constructor are in range; called before models are loaded.

        The ranges are those of the annotations of the constructors, see `astra_rl.infra.ranges`.
        Override it for options that depend on each other.

        Args:
            options: Keyword arguments of the constructor.

        Raises:
            ConfigurationError: One is out of range.
        """
        check_ranges(cls, options)

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
            ConfigurationError: It does.
        """
        if cls.needs_exact_sampling and not is_exact:
            raise ConfigurationError(
                f"{cls.__name__} needs attacks sampled from the distribution it trains: "
                "temperature 1, no top_k, no top_p. Change the attacker's sampling, or use DPO or "
                "IPO."
            )

    @classmethod
    def check_environment(cls, environment: type[Environment[Any, Any]]) -> None:
        """Raise if the algorithm needs attacks of the attacker, and an environment has others.

        Raises:
            ConfigurationError: It does.
        """
        if cls.needs_exact_sampling and not environment.samples_exactly:
            raise ConfigurationError(
                f"{cls.__name__} trains on attacks that the attacker sampled, and "
                f"{environment.__name__} writes others, too. Use expert_iteration, dpo, ipo, "
                "trajectory_balance, or another environment."
            )

    @classmethod
    def is_off_policy(cls, **options: Any) -> bool:
        """Whether it can learn from attacks that weights of earlier training steps sampled.

        Args:
            options: Options of the algorithm, with defaults.
        """
        return not cls.needs_exact_sampling

    def on_collected(
        self, played: Sequence[Graph[StateT, ActionT]], kept: Sequence[Graph[StateT, ActionT]]
    ) -> None:
        """Called with the episodes of an experience before `flatten`; the default does nothing.

        Args:
            played: All episodes.
            kept: Those that are trained on, see `collector`.
        """

    def turns_to_score(
        self, graphs: Sequence[Graph[StateT, ActionT]]
    ) -> list[Node[StateT, ActionT]]:
        """Return the turns of an experience of which at least one must have a valid reward.

        A training ends after several consecutive experiences without one, see `Trainer`. All turns
        by default: an attacker none of whose outputs is an attack learns nothing, either.
        """
        return [node for graph in graphs for node in graph.nodes()]

    @abstractmethod
    def flatten(self, graph: Graph[StateT, ActionT]) -> Sequence[StepT]:
        """Return the training steps of one episode.

        A node with a missing reward gives no step, or one that `prepare` drops.
        """

    def prepare(self, steps: Sequence[StepT]) -> Sequence[StepT]:
        """Complete the steps of a whole experience, once, before they are batched.

        Compute here what needs no gradient or several episodes: reference log-probabilities,
        values, advantages. The default returns the steps unchanged.
        """
        return steps

    def batched_with(self, step: StepT) -> Hashable:
        """Return a key of the steps that are kept next to each other when steps are shuffled.

        A beginning that rows of a batch share is computed once, so the default is the step's
        attribute ``context``: siblings are kept together.

        Returns:
            None for a step that is shuffled alone.
        """
        context = getattr(step, "context", None)
        return context_key(context) if isinstance(context, str) else None

    @abstractmethod
    def collate_fn(self, steps: Sequence[StepT]) -> BatchT:
        """Collate steps into a batch."""

    @abstractmethod
    def step(self, batch: BatchT) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch, a scalar that requires grad, and metrics to log.

        The loss is the mean over the steps of the batch. It must not depend on padding or on the
        order of the rows, and the mean over micro-batches, weighted by `weight`, must equal the
        loss of the whole batch.
        """

    def weight(self, batch: BatchT) -> float:
        """Return the weight of a micro-batch among those of one optimiser step.

        The default is its length, or 1 if it has none.
        """
        return float(len(batch)) if isinstance(batch, Sized) else 1.0

    def halves(self, batch: BatchT) -> tuple[BatchT, BatchT] | None:
        """Split a batch in two, for retrying after out of memory; None if it cannot be split.

        The mean of the two losses, weighted by `weight`, must equal the loss of the whole. The
        default splits a dataclass whose fields are sequences or tensors with one entry per row, or
        None.
        """
        return halves_by_row(batch)

    @classmethod
    def values_needed(cls, **options: Any) -> int:
        """Return the number of values per token that it needs; see `ValueFunctionProblem.values`.

        Args:
            options: Options of the algorithm.
        """
        return 0

    @classmethod
    def uses_reference(cls, **options: Any) -> bool:
        """Whether it compares the attacker with the reference model.

        Args:
            options: Options of the algorithm, with defaults.
        """
        return True

    @classmethod
    def terms_needed(cls, **options: Any) -> Sequence[str]:
        """Return the names of the reward terms that it needs besides the reward.

        Args:
            options: Options of the algorithm.
        """
        return ()

    @classmethod
    def rounds_of_play(cls, **options: Any) -> int:
        """Return how often the episodes of an experience are played at most, for cost estimates.

        More than 1 if episodes may be replaced, 0 if none is played.

        Args:
            options: Options of the algorithm, defaults included.
        """
        return 1

    def experience_metrics(self) -> Metrics:
        """Return metrics of the latest prepared experience."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state besides the weights that a resumed run needs, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


def halves_by_row(batch: Any, at: int | None = None) -> tuple[Any, Any] | None:
    """Split an index-aligned batch in two; None if it cannot be split.

    Args:
        batch: A dataclass whose fields are sequences or tensors with one entry per row, or None.
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
