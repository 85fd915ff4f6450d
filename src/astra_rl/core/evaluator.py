"""Interface of evaluators: play episodes, compute metrics per episode, aggregate them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic

from astra_rl.core.common import ActionT, StateT
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.seeding import repetitions
from astra_rl.errors import ConfigurationError
from astra_rl.infra.jsonio import write_json
from astra_rl.logging import logger

GraphMetrics = dict[str, Any]
"""Metrics of one episode, as JSON values; see `Evaluator.compute_metrics`."""
AroundBatch = Callable[[Callable[[], Sequence[GraphMetrics]]], Sequence[GraphMetrics]]
"""Wraps each batch: calls its argument, which plays and measures the batch, and returns metrics."""


def call(play: Callable[[], Sequence[GraphMetrics]]) -> Sequence[GraphMetrics]:
    """Play a batch without anything around it."""
    return play()


class Evaluator(ABC, Generic[StateT, ActionT]):
    """Plays evaluation episodes and aggregates their metrics.

    Args:
        environment: Plays the episodes.
        seeds: What each episode opens with: a seed, or a context such as a prompt.
            None means the seeds 0, 1, 2, ...
        batch_size: Number of episodes that are played together.
        around_batch: Wraps each batch, for instance to enforce a budget. It may return the metrics
            of fewer episodes than the batch has.

    Attributes:
        measured: Metrics of the episodes that the latest `evaluate` played, also if it raised.

    Raises:
        ConfigurationError: `seeds` is empty, or `batch_size` is below 1.
    """

    def __init__(
        self,
        environment: Environment[StateT, ActionT],
        seeds: Sequence[int | StateT] | None = None,
        *,
        batch_size: int = 64,
        around_batch: AroundBatch = call,
    ) -> None:
        self.environment = environment
        self.seeds = None if seeds is None else list(seeds)
        if self.seeds == []:
            raise ConfigurationError("seeds is empty; give at least one, or None for 0, 1, 2, ...")
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}; it must be at least 1.")
        self.batch_size = batch_size
        self.around_batch = around_batch
        self.measured: list[GraphMetrics] = []

    @property
    def env(self) -> Environment[StateT, ActionT]:
        """The environment, under its short name."""
        return self.environment

    def evaluate(self, n_rollouts: int | None = None, progress: bool = True) -> dict[str, Any]:
        """Play `n_rollouts` episodes and aggregate their metrics.

        Args:
            n_rollouts: Number of episodes; None plays every given seed once, or 20 episodes
                without given seeds. Beyond the number of given contexts they are played again in
                order, as further trials.
            progress: Show a progress bar on a terminal.

        Returns:
            The result of `aggregate_metrics`.

        Raises:
            ConfigurationError: More rollouts than integer seeds, which would repeat episodes.
        """
        seeds = self._openings(n_rollouts)
        # Counted over all batches: a batch does not know what was played in earlier ones.
        trials = repetitions(seeds)
        places = self._places(len(seeds))
        seeds, trials = [seeds[at] for at in places], [trials[at] for at in places]
        self.measured = []
        start = 0
        for size in _with_progress(self.batch_sizes(len(seeds)), len(seeds), progress):
            batch = slice(start, start + size)
            start += size
            logger.info("playing conversations %d to %d of %d", batch.start + 1, start, len(seeds))
            play = partial(self._play, seeds[batch], trials[batch])
            self.measured.extend(self.around_batch(play))
        return self.aggregate_metrics(self.measured)

    def _play(self, seeds: Sequence[int | StateT], trials: Sequence[int]) -> Sequence[GraphMetrics]:
        return self.measure(self.environment.eval_rollouts(seeds, trials))

    def measure(self, graphs: Sequence[Graph[StateT, ActionT]]) -> list[GraphMetrics]:
        """Compute the metrics of a batch of episodes; override it to judge them in one call."""
        return [self.compute_metrics(graph) for graph in graphs]

    def _openings(self, n_rollouts: int | None) -> list[int | StateT]:
        if self.seeds is None:
            return list(range(20 if n_rollouts is None else n_rollouts))
        count = len(self.seeds) if n_rollouts is None else n_rollouts
        if count > len(self.seeds) and any(isinstance(seed, int) for seed in self.seeds):
            raise ConfigurationError(
                f"n_rollouts={count} and {len(self.seeds)} seeds; the same integer plays the same "
                "episode, so more of them would count twice. Give more seeds, or None."
            )
        return [self.seeds[index % len(self.seeds)] for index in range(count)]

    def _places(self, count: int) -> Sequence[int]:
        """Return which of the planned episodes are played, by their place in the plan."""
        return range(count)

    def batch_sizes(self, count: int) -> Iterator[int]:
        """Yield the number of episodes of each batch; the next is asked for when one was played.

        Args:
            count: Number of episodes; the sizes add up to it.
        """
        for start in range(0, count, self.batch_size):
            yield min(self.batch_size, count - start)

    @abstractmethod
    def compute_metrics(self, graph: Graph[StateT, ActionT]) -> GraphMetrics:
        """Compute the metrics of one episode."""

    @abstractmethod
    def aggregate_metrics(self, metrics: Sequence[GraphMetrics]) -> dict[str, Any]:
        """Aggregate the metrics of all episodes."""

    @staticmethod
    def write_json(data: Any, path: str | Path) -> None:
        """Write `data` as UTF-8 JSON; numbers that are not finite become null."""
        write_json(data, path)


def _with_progress(sizes: Iterator[int], count: int, progress: bool) -> Iterator[int]:
    """Yield the sizes of batches, and show on a terminal how many of `count` episodes are done."""
    if not progress:
        yield from sizes
        return
    try:
        from rich.progress import Progress
    except ImportError:  # the progress bar is optional
        yield from sizes
        return
    with Progress(transient=True) as shown:
        task = shown.add_task("evaluating", total=count)
        for size in sizes:
            yield size
            shown.advance(task, size)
