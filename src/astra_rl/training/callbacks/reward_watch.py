"""The callback that looks for reward hacking with a held-out judge."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from astra_rl.core.common import Metrics
from astra_rl.core.graph import Graph, Node
from astra_rl.core.moderator import Moderator
from astra_rl.core.seeding import derive_seed
from astra_rl.core.text import Exchange, NoReply
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.reward_watch import RewardWatch
from astra_rl.training.callback import AnyTrainer, TrainerCallback


class WatchReward(TrainerCallback):
    """Scores a sample of each step's turns with a held-out judge, to detect reward hacking.

    Adds the metrics ``watch/...`` of `RewardWatch.record` to the log. The judge scores the turns
    before the algorithm learns from them, so that an endpoint or a budget that fails there drops
    the experience instead of leaving it half recorded.

    Args:
        moderator: The training moderator; a `CachedModerator` does not compute the scores again.
        judge: Another moderator, which must not be part of the reward.
        turns: Maximum number of turns per step, drawn at random.
        seed: Seed of the draw.
        watch: Compares the scores; None is a `RewardWatch` with its defaults.

    Raises:
        ConfigurationError: `turns` is below 1.
    """

    def __init__(
        self,
        moderator: Moderator[Any, Any],
        judge: Moderator[Any, Any],
        *,
        turns: int = 16,
        seed: int = 0,
        watch: RewardWatch | None = None,
    ) -> None:
        if turns < 1:
            raise ConfigurationError(f"turns={turns}; it must be at least 1.")
        self.moderator = moderator
        self.judge = judge
        self.turns = turns
        self.seed = seed
        self.watch = RewardWatch() if watch is None else watch
        self._found: Metrics = {}

    def on_experience(self, trainer: AnyTrainer, graphs: Sequence[Graph[Any, Any]]) -> None:
        """Score a sample of the turns."""
        nodes = [node for graph in graphs for node in graph.attacker_nodes()]
        self._found = self.compare(trainer.completed_steps + 1, nodes)

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Add the metrics."""
        logs |= self._found

    def compare(self, step: int, nodes: Sequence[Node[str, str]]) -> Metrics:
        """Score a sample of turns and return `RewardWatch.record`; empty without turns."""
        draw = random.Random(derive_seed(self.seed, "watch", step))
        answered = [node for node in nodes if not isinstance(node.response, NoReply)]
        chosen = draw.sample(answered, min(self.turns, len(answered)))
        if not chosen:
            return {}
        exchanges = [Exchange(node.context, node.attack, node.response) for node in chosen]
        scores, judged = self.moderator.moderate(exchanges), self.judge.moderate(exchanges)
        return self.watch.record(step, scores, judged, [str(node.attack) for node in chosen])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the comparison."""
        return self.watch.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.watch.load_state_dict(state)
