"""Environment and algorithm, joined: episodes in, batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Generic

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import ActionT, BatchT, Metrics, StateT, StepT
from astra_rl.core.contracts import is_missing, mean_of_present, std_of_present
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.seeding import derive_seed


class Harness(Generic[StateT, ActionT, StepT, BatchT]):
    """Collects episodes and hands them to the algorithm in batches.

    Args:
        environment: Plays the episodes.
        algorithm: Cuts them into steps and computes the loss.
        num_episodes_per_experience: Episodes per `experience` call.
        batch_size: Steps per batch.
        dataloader_kwargs: Passed on to `torch.utils.data.DataLoader`, over the defaults.

    Attributes:
        graphs: The episodes of the latest experience.
        collected: Called with them before anything is learned from them. What it raises drops the
            experience as if it had never been played.
    """

    def __init__(
        self,
        environment: Environment[StateT, ActionT],
        algorithm: Algorithm[StateT, ActionT, StepT, BatchT],
        num_episodes_per_experience: int = 32,
        *,
        batch_size: int = 1,
        dataloader_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.environment = environment
        self.algorithm = algorithm
        self.num_episodes_per_experience = num_episodes_per_experience
        self.dataloader_kwargs = {"batch_size": batch_size, **(dataloader_kwargs or {})}
        self.graphs: list[Graph[StateT, ActionT]] = []
        self.collected: Callable[[Sequence[Graph[StateT, ActionT]]], None] = lambda graphs: None

    def experience(self, seed: int | None = None) -> Iterable[BatchT]:
        """Play episodes and return their batches; the same seed gives the same batches.

        An algorithm of several epochs gets each step once per epoch, in another order.
        An experience that teaches nothing (for instance, all siblings tie) has no batches.
        """
        self.graphs, kept = self.algorithm.collector.collect(
            self.environment, seed, self.num_episodes_per_experience
        )
        self.collected(self.graphs)
        self.environment.problem.observe(self.graphs)
        flat = list(chain.from_iterable(map(self.algorithm.flatten, kept)))
        steps: Sequence[StepT] = self.algorithm.prepare(flat)
        if not steps:
            return []
        generator = None
        if seed is not None:
            generator = torch.Generator().manual_seed(derive_seed(seed, "batches"))
        loader: DataLoader[StepT] = DataLoader(
            steps,  # type: ignore[arg-type]
            **{
                "shuffle": True,
                "generator": generator,
                "collate_fn": self.algorithm.collate_fn,
                **self.dataloader_kwargs,
            },
        )
        return loader if self.algorithm.epochs == 1 else _Epochs(loader, self.algorithm.epochs)

    def step(self, batch: BatchT) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch and numbers to log."""
        return self.algorithm.step(batch)

    def experience_metrics(self) -> Metrics:
        """Sum up the latest experience: mean reward and reward terms over all nodes.

        Missing values are left out of the means; ``rewards/missing`` is their share. What the
        algorithm has to say about the experience comes with them.
        """
        nodes = [node for graph in self.graphs for node in graph.nodes()]
        rewards = [node.reward for node in nodes]
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


class _Epochs(Iterable[Any]):
    """The batches of a loader several times over, shuffled anew each time."""

    def __init__(self, loader: DataLoader[Any], count: int) -> None:
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(repeat(self.loader, self.count))

    def __len__(self) -> int:
        return self.count * len(self.loader)
