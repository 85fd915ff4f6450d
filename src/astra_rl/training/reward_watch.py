"""A hook for trainers: a judge that trains nobody looks over the moderator's shoulder."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from astra_rl.core.common import Metrics
from astra_rl.core.graph import Node
from astra_rl.core.moderator import Moderator
from astra_rl.core.seeding import derive_seed
from astra_rl.core.text import Exchange, NoReply
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.reward_watch import RewardWatch
from astra_rl.moderators.caching import CachedModerator


class WatchHook:
    """Lets training moderator and held-out judge score the same few turns of each training step.

    Call it in `on_step_end` of a trainer and log what it returns.

    Args:
        moderator: The training moderator; a `CachedModerator` has the scores already.
        judge: Another moderator, which must not be part of the reward.
        turns: At most so many turns per step, drawn at random.
        seed: Of the draw.
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
            raise ConfigurationError(f"turns={turns}; at least 1 must be judged.")
        self.moderator = moderator
        self.judge = judge
        self.turns = turns
        self.seed = seed
        self.watch = RewardWatch() if watch is None else watch

    def __call__(self, step: int, nodes: Sequence[Node[str, str]]) -> Metrics:
        """Score some of a step's turns and return `RewardWatch.record`; nothing without turns."""
        draw = random.Random(derive_seed(self.seed, "watch", step))
        answered = [node for node in nodes if not isinstance(node.response, NoReply)]
        chosen = draw.sample(answered, min(self.turns, len(answered)))
        if not chosen:
            return {}
        exchanges = [Exchange(node.context, node.attack, node.response) for node in chosen]
        scores, judged = self.moderator.moderate(exchanges), self.judge.moderate(exchanges)
        return self.watch.record(step, scores, judged, [str(node.attack) for node in chosen])


class UnscoredHook:
    """Counts by reason what a `CachedModerator` could not score since it was last asked.

    Args:
        moderator: Any moderator; others than a `CachedModerator` count nothing.
    """

    def __init__(self, moderator: Moderator[Any, Any]) -> None:
        self.moderator = moderator
        self._before = self._counted()

    def __call__(self) -> Metrics:
        """Return ``unscored/REASON`` for each reason there was."""
        now = self._counted()
        new, self._before = now - self._before, now
        return {f"unscored/{reason}": float(count) for reason, count in sorted(new.items())}

    def _counted(self) -> Counter[str]:
        moderator = self.moderator
        return Counter(moderator.unscored if isinstance(moderator, CachedModerator) else {})
