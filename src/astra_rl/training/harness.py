"""The harness: collects episodes from an environment and batches them for an algorithm."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, repeat
from typing import Any, Generic

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.collector import Collected
from astra_rl.core.common import ActionT, BatchT, Metrics, StateT, StepT
from astra_rl.core.contracts import is_missing, mean_of_present, std_of_present
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.seeding import derive_seed


class Harness(Generic[StateT, ActionT, StepT, BatchT]):
    """Collects episodes from the environment and yields batches for the algorithm.

    Args:
        environment: Plays the episodes.
        algorithm: Flattens them to steps, collates steps to batches and computes the loss.
        num_episodes_per_experience: Episodes per `experience` call.
        batch_size: Steps per batch.
        dataloader_kwargs: Keyword arguments of `torch.utils.data.DataLoader`; they override the
            defaults of this class.
        on_collected: Called with the episodes of an experience before the problem and the algorithm
            see them; if it raises, the experience is dropped.

    Attributes:
        graphs: The episodes of the latest experience.
        scoring: Returns a context in which log-probabilities without gradients are computed; a
            training on several processes sets it.
        collect: Returns the episodes of an experience from its seed; a training that plays ahead
            sets it.
        on_observed: Called when reward and environment have observed the experience.

    Raises:
        ConfigurationError: The algorithm cannot learn from the attacks of the environment.
    """

    def __init__(
        self,
        environment: Environment[StateT, ActionT],
        algorithm: Algorithm[StateT, ActionT, StepT, BatchT],
        num_episodes_per_experience: int = 32,
        *,
        batch_size: int = 1,
        dataloader_kwargs: Mapping[str, Any] | None = None,
        on_collected: Callable[[Sequence[Graph[StateT, ActionT]]], None] | None = None,
    ) -> None:
        algorithm.check_environment(type(environment))
        self.environment = environment
        self.algorithm = algorithm
        self.num_episodes_per_experience = num_episodes_per_experience
        self.dataloader_kwargs = {"batch_size": batch_size, **(dataloader_kwargs or {})}
        self.graphs: list[Graph[StateT, ActionT]] = []
        self.on_collected = on_collected
        self.scoring: Callable[[], AbstractContextManager[None]] = nullcontext
        self.collect: Callable[[int | None], Collected] = self._collect
        self.on_observed: Callable[[], None] = _nothing

    def experience(self, seed: int | None = None) -> Iterable[BatchT]:
        """Play episodes and return their batches; the same seed gives the same batches.

        Steps are shuffled by groups, see `Algorithm.batched_with`, so that most rows of a batch are
        siblings, whose context is computed once.

        With ``algorithm.epochs`` above 1 each step occurs once per epoch, shuffled anew. An
        experience without a learning signal (all siblings tie, for instance) has no batches.
        """
        self.graphs, kept = self.collect(seed)
        self.environment.problem.rollouts_over()
        if self.on_collected is not None:
            self.on_collected(self.graphs)
        self.environment.problem.observe(self.graphs)
        self.environment.observe(self.graphs)
        self.algorithm.on_collected(self.graphs, kept)
        self.on_observed()
        flat = list(chain.from_iterable(map(self.algorithm.flatten, kept)))
        with self.scoring():
            steps: Sequence[StepT] = self.algorithm.prepare(flat)
        if not steps:
            return []
        generator = None
        if seed is not None:
            generator = torch.Generator().manual_seed(derive_seed(seed, "batches"))
        options = {
            "shuffle": True,
            "generator": generator,
            "collate_fn": self.algorithm.collate_fn,
            **self.dataloader_kwargs,
        }
        groups = list(map(self.algorithm.batched_with, steps))
        if options["shuffle"] and any(group is not None for group in groups):
            options |= {"shuffle": False, "sampler": ShuffledGroups(groups, generator)}
        loader: DataLoader[StepT] = DataLoader(steps, **options)  # type: ignore[arg-type]
        return loader if self.algorithm.epochs == 1 else _Epochs(loader, self.algorithm.epochs)

    def _collect(self, seed: int | None) -> Collected:
        return self.algorithm.collector.collect(
            self.environment, seed, self.num_episodes_per_experience
        )

    def step(self, batch: BatchT) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch, a scalar that requires grad, and metrics to log."""
        return self.algorithm.step(batch)

    def experience_metrics(self) -> Metrics:
        """Return metrics of the latest experience: means of reward and reward terms.

        The reward is that of the attacker; in self-play the defender's is among the terms. Missing
        values are excluded from the means; ``rewards/missing`` is their share. The
        algorithm's own `Algorithm.experience_metrics` are included.
        """
        nodes = [node for graph in self.graphs for node in graph.nodes()]
        rewards = [node.reward for graph in self.graphs for node in graph.attacker_nodes()]
        names = sorted({name for node in nodes for name in node.reward_terms})
        return {
            "reward": mean_of_present(rewards),
            "reward_std": std_of_present(rewards),
            "rewards/missing": (
                sum(map(is_missing, rewards)) / len(rewards) if rewards else float("nan")
            ),
            **{
                f"rewards/{name}/mean": mean_of_present(
                    node.reward_terms[name] for node in nodes if name in node.reward_terms
                )
                for name in names
            },
            **self.algorithm.experience_metrics(),
        }


def _nothing() -> None:
    pass


class ShuffledGroups(Sampler[int]):
    """Indices in random order, those of a group next to each other.

    Args:
        groups: Group of each index; None for an index without a group.
        generator: Random generator; None is the global one. Each iteration draws anew.
    """

    def __init__(self, groups: Sequence[Hashable], generator: torch.Generator | None) -> None:
        members: dict[Hashable, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault((index,) if group is None else (group, None), []).append(index)
        self.members, self.generator = list(members.values()), generator
        self.count = len(groups)

    def __iter__(self) -> Iterator[int]:
        for group in self._order(len(self.members)):
            members = self.members[group]
            order = self._order(len(members)) if len(members) > 1 else [0]
            yield from (members[place] for place in order)

    def __len__(self) -> int:
        return self.count

    def _order(self, count: int) -> list[int]:
        order: list[int] = torch.randperm(count, generator=self.generator).tolist()
        return order


class _Epochs(Iterable[Any]):
    """Iterates over a loader several times; the loader shuffles anew each time."""

    def __init__(self, loader: DataLoader[Any], count: int) -> None:
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(repeat(self.loader, self.count))

    def __len__(self) -> int:
        return self.count * len(self.loader)
