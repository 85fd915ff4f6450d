"""Baselines that do not learn, at the same budget as those that do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import Metrics
from astra_rl.core.graph import Graph, Node
from astra_rl.core.text import NotAsked


class NoTraining(Algorithm[str, str, None, None]):
    """Plays the episodes of a training and learns nothing from them.

    With `ASTEnvironment` it is the untrained attacker, with `BestOfNEnvironment` best of n, with
    `TAPEnvironment` TAP or PAIR, with `CrescendoEnvironment`, `GOATEnvironment` and
    `ArchiveEnvironment` the methods of these names, with `FewShotEnvironment` few-shot prompts, and
    with `MutationEnvironment` an evolutionary search. In a configuration it is
    ``astra_rl.bench:NoTraining``.

    Several consecutive experiences in which the attacker wrote no attack do not end it, as they end
    a training: the next one may have some, and nothing was sent. Responses without a score still
    do, because calls are spent on a moderator that fails.
    """

    def turns_to_score(self, graphs: Sequence[Graph[str, str]]) -> list[Node[str, str]]:
        """Return the turns whose attack was sent."""
        turns = super().turns_to_score(graphs)
        return [turn for turn in turns if not isinstance(turn.response, NotAsked)]

    def flatten(self, graph: Graph[str, str]) -> Sequence[None]:
        """Return no steps."""
        return []

    def collate_fn(self, steps: Sequence[None]) -> None:
        """Never called: there are no steps."""

    def step(self, batch: None) -> tuple[Tensor, Metrics]:
        """Never called: there are no batches."""
        raise NotImplementedError("NoTraining has no batches.")
