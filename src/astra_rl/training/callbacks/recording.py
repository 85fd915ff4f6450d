"""The callback that records every conversation of a training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from astra_rl.core.common import Metrics
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.from_graphs import Labels, record_tree
from astra_rl.evaluation.records.turn import Opening
from astra_rl.rewards.base import RESPONSE_HARM
from astra_rl.training.callback import AnyTrainer, TrainerCallback


class AttemptRecorder(TrainerCallback):
    """Records the conversations of each training step as `Attempt` objects.

    Args:
        write: Receives the attempts of one step, for instance ``attempts.extend`` of a list.
        labels: Names of the run, the attacker and the target.
        judge: Name of the training moderator.
        threshold: Score of a response, in (0, 1], from which on the attack is a success.
        opponent: Returns the name of the target that answered in the step, if it is another than
            that of `labels`; None if it is not.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Attempt]], object],
        labels: Labels | None = None,
        *,
        judge: str = "moderator",
        threshold: float = 0.5,
        opponent: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.write = write
        self.labels = Labels(phase="training") if labels is None else labels
        self.judge, self.threshold, self.opponent = judge, threshold, opponent
        self._trials: Counter[str] = Counter()

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Record the conversations of the step."""
        attempts: list[Attempt] = []
        drawn = self.opponent()
        labels = self.labels if drawn is None else replace(self.labels, target=drawn)
        for graph in trainer.harness.graphs:
            opening = Opening.of(graph.context).id
            attempts += record_tree(
                graph,
                labels,
                judge=self.judge,
                score=lambda node: node.reward_terms.get(RESPONSE_HARM, math.nan),
                threshold=self.threshold,
                trial=self._trials[opening],
                step=step,
            )
            self._trials[opening] += 1
        self.write(attempts)

    def state_dict(self) -> dict[str, Any]:
        """Return how often each opening was played."""
        return {"trials": dict(self._trials)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._trials = Counter(state["trials"])
