"""Baselines that do not learn, at the same budget as those that do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import Metrics
from astra_rl.core.graph import Graph


class NoTraining(Algorithm[str, str, None, None]):
    """Plays the episodes of a training and learns nothing from them.

    With `ASTEnvironment` it is the untrained attacker, with `BestOfNEnvironment` best of n, with
    `TAPEnvironment` TAP or PAIR, with `CrescendoEnvironment`, `GOATEnvironment` and
    `ArchiveEnvironment` the methods of these names, and with `MutationEnvironment` an evolutionary
    search. In a configuration it
    is ``astra_rl.bench:NoTraining``.
    """

    def flatten(self, graph: Graph[str, str]) -> Sequence[None]:
        """Return no steps."""
        return []

    def collate_fn(self, steps: Sequence[None]) -> None:
        """Never called: there are no steps."""

    def step(self, batch: None) -> tuple[Tensor, Metrics]:
        """Never called: there are no batches."""
        raise NotImplementedError("NoTraining has no batches.")
