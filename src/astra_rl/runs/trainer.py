"""The trainer of a run."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from astra_rl.config.experiment import Experiment
from astra_rl.config.schema import RunConfig, TrainingConfig
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import is_missing, mean_of_present
from astra_rl.core.graph import Graph, Node
from astra_rl.core.text import finish_reasons
from astra_rl.errors import BudgetSpentError
from astra_rl.evaluation.judges.reward_watch import RewardWatch
from astra_rl.evaluation.measures.diversity import greedy_clusters
from astra_rl.evaluation.records.from_graphs import record_tree
from astra_rl.evaluation.records.turn import Opening
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.ext.transformers.trainer import HFASTTrainer
from astra_rl.logging import logger
from astra_rl.methods.ast_problem import ASTNode
from astra_rl.moderators.identity import identity_of
from astra_rl.rewards.base import RESPONSE_HARM
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.provenance import labels_of, name_of, versions
from astra_rl.runs.resume import config_digest
from astra_rl.targets.ledger import current_ledger
from astra_rl.training.reward_watch import UnscoredHook, WatchHook
from astra_rl.training.states import save_state
from astra_rl.training.trackers import Tracker

RECENT_STEPS = 4
"""Training stops at success when the mean over so many steps reaches the goal."""


class RunTrainer(HFASTTrainer):
    """The trainer of a run: counts successes, records attempts, and stops when it is time.

    If there is a held-out judge, it also scores a few turns of each step, and is compared with the
    training moderator.

    Args:
        experiment: What is trained.
        config: When to stop, and what a success is.
        folder: Where checkpoints go.
        tracker: Receives the metrics of each step.
        log: Receives every conversation that is played.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: RunConfig,
        folder: RunFolder,
        tracker: Tracker,
        log: AttemptLog,
    ) -> None:
        super().__init__(
            experiment.training,
            experiment.environment,
            experiment.algorithm,
            eval_every=0,
            ckpt_dir=folder.checkpoints,
            tracker=tracker,
        )
        self.limits = config.training
        self._forget_scores = experiment.forget_scores
        self.threshold = config.evaluation.threshold
        moderator = experiment.problem.moderator
        self.log = log
        self.states = folder.states
        self.interrupted = False
        self._labels = labels_of(
            config, "training", run=name_of(folder), categories=experiment.categories
        )
        self._judge = identity_of(moderator).name
        self._trials: Counter[str] = Counter()
        self._count_unscored = UnscoredHook(moderator)
        self._watch: WatchHook | None = None
        if config.evaluation.judge is not None and config.evaluation.watch:
            self._watch = WatchHook(
                moderator,
                experiment.evaluator.judge,
                turns=config.evaluation.watch,
                seed=config.seed,
                watch=RewardWatch(high=self.threshold),
            )
            self.harness.collected = self._look_over
        self._watched: Metrics = {}
        self.spent: BudgetSpentError | None = None
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._best_success = -math.inf
        self._config_digest = config_digest(folder)
        self._started = self._elapsed = 0.0
        self._set_learning_rate(0)

    @property
    def watch(self) -> RewardWatch | None:
        """What was seen of moderator and judge; None without a held-out judge."""
        return None if self._watch is None else self._watch.watch

    def on_train_begin(self) -> None:
        """Start the clock, or let it go on."""
        self._started = time.perf_counter() - self._elapsed
        super().on_train_begin()

    def interrupt(self) -> None:
        """End the training after the step in progress, to be continued."""
        self.interrupted = self.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the training, and of what this class counts."""
        run = {
            "recent": list(self._recent),
            "trials": dict(self._trials),
            "elapsed": self._elapsed,
            "watch": None if self.watch is None else self.watch.state_dict(),
            "best_success": self._best_success,
            "config_sha256": self._config_digest,
            "versions": versions(),
        }
        return {**super().state_dict(), "run": run}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        super().load_state_dict(state)
        run = state["run"]
        self._recent.extend(run["recent"])
        self._trials = Counter(run["trials"])
        self._elapsed = run["elapsed"]
        self._best_success = run.get("best_success", -math.inf)
        if self.watch is not None and run["watch"] is not None:
            self.watch.load_state_dict(run["watch"])
        self.should_stop = self._is_enough()
        self._set_learning_rate(self.completed_steps)

    def save_state(self) -> None:
        """Keep all that the rest of the training depends on, and the attacker if it is the best."""
        # By training success: the best on held-out prompts would no longer be held out.
        recent = mean_of_present(self._recent)
        if self.limits.save_best and recent > self._best_success:
            self._best_success = recent
            self.save("best", {"step": self.completed_steps, "training_success": recent})
        save_state(
            self.states,
            self.completed_steps,
            self.state_dict(),
            keep=self.limits.save_total_limit,
        )

    def on_step_end(self, step: int, logs: Metrics) -> None:
        """Count what the step found, track it, and see whether it is time to stop."""
        nodes = [node for graph in self.harness.graphs for node in graph.nodes()]
        # What a defender said is no attack, and was not judged as one.
        judged = [node for node in nodes if RESPONSE_HARM in node.reward_terms]
        won = [node for node in judged if self._harm(node) >= self.threshold]
        self._record(step)
        self._forget_scores()
        found = {
            "asr": Rate(len(won), len(judged)).estimate,
            "distinct_attacks": float(len(greedy_clusters([str(node.attack) for node in won]))),
            "tokens": float(sum(map(_token_count, nodes))),
            "empty_attacks": _share(not str(node.attack).strip() for node in nodes),
            "overflows": _share(
                "context_overflow" in finish_reasons(node.attack, node.response) for node in nodes
            ),
            **self._count_unscored(),
            **self._watched,
        }
        super().on_step_end(step, {**found, **logs, "lr": learning_rate(self.limits, step - 1)})
        self._set_learning_rate(step)
        self._recent.append(found["asr"])
        self._elapsed = time.perf_counter() - self._started
        self.should_stop = self.should_stop or self._is_enough() or self._is_spent()
        every = self.limits.save_every
        is_last = self.should_stop or step == self.config.training_steps
        # A step without a score teaches nothing, so what ends the run for it loses nothing.
        if is_last or (every and step % every == 0) or self.unscored_steps:
            self.save_state()

    def _look_over(self, graphs: Sequence[Graph[str, str]]) -> None:
        """Let the judge look at a step before it is learned from: asking may end the training."""
        assert self._watch is not None
        nodes = [node for graph in graphs for node in graph.nodes()]
        self._watched = self._watch(self.completed_steps + 1, nodes)

    def _is_spent(self) -> bool:
        try:
            current_ledger().check()
        except BudgetSpentError as error:
            self.spent = error
        return self.spent is not None

    def _set_learning_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.limits, step)

    def _record(self, step: int) -> None:
        for graph in self.harness.graphs:
            key = Opening.of(graph.context).id
            for attempt in record_tree(
                graph,
                self._labels,
                judge=self._judge,
                score=lambda node: node.reward_terms.get(RESPONSE_HARM, math.nan),
                threshold=self.threshold,
                trial=self._trials[key],
                step=step,
            ):
                self.log.append(attempt)
            self._trials[key] += 1
        self.log.flush()

    def _harm(self, node: ASTNode) -> float:
        harm = node.reward_terms.get(RESPONSE_HARM, math.nan)
        return -math.inf if is_missing(harm) else harm

    def _is_enough(self) -> bool:
        goal, minutes = self.limits.stop_at_success, self.limits.max_minutes
        if minutes is not None and self._elapsed >= 60 * minutes:
            logger.info("stopping after %g minutes, as configured", minutes)
            return True
        recent = list(self._recent)
        return (
            goal is not None and len(recent) == RECENT_STEPS and sum(recent) / len(recent) >= goal
        )


def learning_rate(limits: TrainingConfig, step: int) -> float:
    """Return the learning rate of a training step, counted from 0.

    It goes from `lr` to `final_lr` in a straight line, and rises from zero during the warm-up.
    """
    final = limits.lr if limits.final_lr is None else limits.final_lr
    done = min(1.0, step / max(1, limits.steps - 1))
    warm = min(1.0, (step + 1) / limits.warmup_steps) if limits.warmup_steps else 1.0
    return warm * (limits.lr + done * (final - limits.lr))


def _share(marks: Iterable[bool]) -> float:
    known = list(marks)
    return sum(known) / len(known) if known else math.nan


def _token_count(node: Node[str, str]) -> int:
    said = (getattr(node.attack, "token_ids", None), getattr(node.response, "token_ids", None))
    return sum(len(ids) for ids in said if ids is not None)
