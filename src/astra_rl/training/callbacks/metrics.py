"""Callbacks that add metrics to the log of a training step, and the one that sends them away."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

from astra_rl.core.common import Metrics
from astra_rl.core.contracts import is_missing, mean_of_present
from astra_rl.core.graph import Node
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import NoAttack, Utterance, finish_reasons
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.diversity import effective_number
from astra_rl.evaluation.measures.text_clusters import greedy_clusters
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.infra.redaction import redact_message
from astra_rl.infra.visible import visible_text
from astra_rl.logging import logger
from astra_rl.moderators.caching import CachedModerator
from astra_rl.rewards.base import RESPONSE_HARM
from astra_rl.training.callback import AnyTrainer, TrainerCallback
from astra_rl.training.trackers import Row, Tracker


class StepMetrics(TrainerCallback):
    """Adds `Harness.experience_metrics` and ``step_time``, the seconds of playing and learning."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def on_step_begin(self, trainer: AnyTrainer, step: int) -> None:
        """Start the clock, and log which step begins."""
        logger.info("step %d of %d", step, trainer.config.training_steps)
        self._started = time.perf_counter()

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Add the metrics; an entry that is already in the log stays."""
        logs["step_time"] = time.perf_counter() - self._started
        for name, value in trainer.harness.experience_metrics().items():
            logs.setdefault(name, value)


class AttackMetrics(TrainerCallback):
    """Adds what the attacks of a step achieved, as the training moderator scored them.

    ``asr`` is the attack success rate over the turns that it scored; ``distinct_attacks`` the
    number of clusters of near-duplicates among successful attacks; ``effective_attacks`` the
    effective number of these clusters (`effective_number`); ``tokens`` the tokens of all
    attacks and responses; ``empty_attacks`` the share of blank attacks; ``no_attack`` the
    share of outputs from which no attack could be extracted; ``overflows`` the share of turns that
    did not fit into a context window. A rate of nothing is NaN.

    Args:
        threshold: Score of the response, in (0, 1], from which on an attack is a success.
        window: Training steps of the moving mean of ``asr``; at least 1.

    Attributes:
        recent: ``asr`` of the latest `window` steps.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(self, threshold: float = 0.5, *, window: int = 4) -> None:
        if not 0 < threshold <= 1:
            raise ConfigurationError(f"threshold={threshold}; it must be in (0, 1].")
        if window < 1:
            raise ConfigurationError(f"window={window}; it must be at least 1.")
        self.threshold, self.window = threshold, window
        self.recent: deque[float] = deque(maxlen=window)

    @property
    def recent_success(self) -> float:
        """Mean of ``asr`` over the latest `window` steps; NaN if none has one."""
        return mean_of_present(self.recent)

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Add the metrics."""
        graphs = trainer.harness.graphs
        nodes = [node for graph in graphs for node in graph.attacker_nodes()]
        scored = [node for node in nodes if RESPONSE_HARM in node.reward_terms]
        successes = [node for node in scored if self._is_success(node)]
        kinds = greedy_clusters([str(node.attack) for node in successes])
        logs |= {
            "asr": Rate(len(successes), len(scored)).estimate,
            "distinct_attacks": float(len(kinds)),
            "effective_attacks": effective_number([len(kind) for kind in kinds]).estimate,
            "tokens": float(sum(_token_count(node) for graph in graphs for node in graph.nodes())),
            "empty_attacks": _share(not str(node.attack).strip() for node in nodes),
            "no_attack": _share(isinstance(node.attack, NoAttack) for node in nodes),
            "overflows": _share(
                "context_overflow" in finish_reasons(node.attack, node.response) for node in nodes
            ),
        }
        self.recent.append(logs["asr"])

    def state_dict(self) -> dict[str, Any]:
        """Return the success rates of the window."""
        return {"recent": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.recent.extend(state["recent"])

    def _is_success(self, node: Node[Any, Any]) -> bool:
        score = node.reward_terms[RESPONSE_HARM]
        return not is_missing(score) and score >= self.threshold


class UnscoredCounts(TrainerCallback):
    """Adds ``unscored/REASON``: how many scores of a `CachedModerator` are missing, by reason.

    Args:
        moderator: Any moderator; one that does not count adds nothing.
    """

    def __init__(self, moderator: Moderator[Any, Any]) -> None:
        self.moderator = moderator
        self._before = self._counts()

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Add the counts since the previous step."""
        logs |= self.new_counts()

    def new_counts(self) -> Metrics:
        """Return the counts since the last call."""
        now = self._counts()
        new, self._before = now - self._before, now
        return {f"unscored/{reason}": float(count) for reason, count in sorted(new.items())}

    def _counts(self) -> Counter[str]:
        moderator = self.moderator
        return Counter(moderator.unscored if isinstance(moderator, CachedModerator) else {})


class Tracking(TrainerCallback):
    """Sends the log of each step to a tracker, and closes it whatever ends the training.

    Place it after the callbacks whose metrics it is to send.

    Args:
        tracker: Receives the metrics.
        conversations: Number of turns of each step that it receives as a table, too, spread evenly
            over the turns of the step; 0 sends none.
    """

    def __init__(self, tracker: Tracker, *, conversations: int = 0) -> None:
        self.tracker, self.conversations = tracker, conversations

    def on_step_end(self, trainer: AnyTrainer, step: int, logs: Metrics) -> None:
        """Send the log, and the table."""
        self.tracker.log(logs, step)
        if not self.conversations:
            return
        nodes = [node for graph in trainer.harness.graphs for node in graph.attacker_nodes()]
        count = min(self.conversations, len(nodes))
        chosen = [nodes[number * len(nodes) // count] for number in range(count)]
        if chosen:
            self.tracker.log_conversations([_row(node, step) for node in chosen], step)

    def close(self) -> None:
        """Close the tracker."""
        self.tracker.close()


def _share(marks: Iterable[bool]) -> float:
    known = list(marks)
    return sum(known) / len(known) if known else math.nan


def _token_count(node: Node[Any, Any]) -> int:
    ids = (Utterance.of(node.attack).token_ids, Utterance.of(node.response).token_ids)
    return sum(len(each) for each in ids if each is not None)


def _row(node: Node[Any, Any], step: int) -> Row:
    prompt, attack, response = (
        visible_text(redact_message(str(text)))
        for text in (node.context, node.attack, node.response)
    )
    return step, prompt, attack, response, float(node.reward)
