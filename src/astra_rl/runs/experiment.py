"""One run from configuration to report: evaluate, train, evaluate again, write it all down."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from astra_rl.core.checkpointing import remove_leftovers
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import is_missing, mean_of_present
from astra_rl.core.graph import Graph, Node
from astra_rl.core.redaction import redact_message, redact_settings
from astra_rl.errors import (
    BudgetEndedError,
    BudgetSpentError,
    EndpointError,
    InterruptedRunError,
)
from astra_rl.evaluation.attempts import Opening
from astra_rl.evaluation.calibration import judge_quality
from astra_rl.evaluation.diversity import greedy_clusters
from astra_rl.evaluation.exports.records import write_failures
from astra_rl.evaluation.recording import Labels, record_tree
from astra_rl.evaluation.reward_watch import RewardWatch
from astra_rl.evaluation.statistics import Rate
from astra_rl.ext.transformers.trainer import HFASTTrainer
from astra_rl.ext.transformers.under_test import NO_LIKELIHOODS
from astra_rl.logging import logger
from astra_rl.methods.ast_problem import ASTNode
from astra_rl.moderators.identity import identity_of
from astra_rl.runs.build import Experiment, build, ordinary_use
from astra_rl.runs.config import RunConfig, TrainingConfig
from astra_rl.runs.continuing import (
    check_same_prompts,
    check_same_run,
    check_versions,
    config_digest,
    ending_well,
    how_to_go_on,
    interruptible,
    kept_metrics,
)
from astra_rl.runs.folder import MANIFEST_VERSION, RunFolder
from astra_rl.runs.recorded import plan_attempts
from astra_rl.runs.records import AttemptLog
from astra_rl.runs.reporting import write_run_page
from astra_rl.runs.spending import evaluated_within_budget, notes_on_calls, spending
from astra_rl.runs.versions import git_revision, versions
from astra_rl.targets.base import Target
from astra_rl.targets.ledger import current_ledger
from astra_rl.training.resuming import load_state, save_state
from astra_rl.training.trackers import HistoryTracker, JSONLTracker, MultiTracker, Tracker
from astra_rl.training.watch import UnscoredHook, WatchHook

RECENT_STEPS = 4
"""Training stops at success when the mean over so many steps reaches the goal."""


class Display:
    """What a person sees while a run goes on. This one shows nothing; override what you show."""

    def stage(self, name: str) -> None:
        """Called when a stage begins, for instance ``"loading models"``."""

    def training_begins(self, steps: int) -> None:
        """Called before the first training step."""

    def training_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after every training step, counted from 1."""

    def training_ends(self) -> None:
        """Called after the last training step."""


@contextlib.contextmanager
def _timed(seconds: dict[str, float], display: Display, name: str) -> Iterator[None]:
    """Tell the display that a stage begins, and note how long it took."""
    display.stage(name)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        folder: Where everything is.
        before: Evaluation of the untrained attacker, None if it was not asked for.
        after: Evaluation of the trained attacker.
        training_steps: Steps that were done.
        seconds: Time by stage.
        warnings: What a reader of the report must know.
    """

    folder: RunFolder
    before: dict[str, Any] | None
    after: dict[str, Any]
    training_steps: int
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()


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
        self._problem = experiment.problem
        self.threshold = config.evaluation.threshold
        moderator = experiment.problem.moderator
        self.log = log
        self.states = folder.states
        self.interrupted = False
        self._labels = labels_of(
            config, "training", run=_name_of(folder), categories=experiment.categories
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
        judged = [node for node in nodes if "harm_response" in node.reward_terms]
        won = [node for node in judged if self._harm(node) >= self.threshold]
        self._record(step)
        self._problem.forget_scores()
        found = {
            "asr": Rate(len(won), len(judged)).estimate,
            "distinct_attacks": float(len(greedy_clusters([str(node.attack) for node in won]))),
            "tokens": float(sum(map(_token_count, nodes))),
            "empty_attacks": _share(not str(node.attack).strip() for node in nodes),
            "overflows": _share(_is_overflow(node) for node in nodes),
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
                score=lambda node: node.reward_terms.get("harm_response", math.nan),
                threshold=self.threshold,
                trial=self._trials[key],
                step=step,
            ):
                self.log.append(attempt)
            self._trials[key] += 1
        self.log.flush()

    def _harm(self, node: ASTNode) -> float:
        harm = node.reward_terms.get("harm_response", math.nan)
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


class _DisplayTracker(Tracker):
    def __init__(self, display: Display) -> None:
        self.display = display

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.display.training_step(step, metrics)


def run_experiment(
    config: RunConfig,
    folder: RunFolder,
    display: Display | None = None,
    *,
    command: str = "",
    force: bool = False,
) -> Result:
    """Do a whole run and leave everything in its folder, or go on with one that ended early.

    Args:
        config: What to do.
        folder: Where to keep it.
        display: Shows progress.
        command: What a person types to get the same run again, for the report.
        force: Go on although configuration or prompts have changed.

    Returns:
        What was found.

    Raises:
        InterruptedRunError: A signal asked to stop; the run can be continued.
        StorageError: The disk is full, or the folder read-only; the run can be continued.
        AstraError: Something cannot be had or does not fit; the message says what.
    """
    go_on = how_to_go_on(folder)
    with (
        ending_well(folder),
        AttemptLog(folder.attempts, write=True) as log,  # which nobody else may write now
    ):
        try:
            with spending(config, folder.path, keep_ledger=True) as ledger:
                try:
                    return _do_run(config, folder, log, display or Display(), command, force)
                except BudgetSpentError as error:
                    ledger.ended_by.append(str(error))
                    option = "--" + error.limit.replace("_", "-")
                    raise BudgetEndedError(
                        f"{error}; everything is saved. {go_on} {option} {2 * error.most:g}"
                    ) from error
        except EndpointError as error:
            raise EndpointError(f"{error} Everything is saved. {go_on}") from error


def _do_run(
    config: RunConfig,
    folder: RunFolder,
    log: AttemptLog,
    display: Display,
    command: str,
    force: bool,
) -> Result:
    command = redact_message(command)
    seconds: dict[str, float] = {}
    remove_leftovers(folder.states)
    remove_leftovers(folder.checkpoints)
    saved = load_state(folder.states)
    record = manifest(config, command)
    if folder.config.is_file():
        state = {} if saved is None else saved[1].get("run", {})
        check_same_run(config, folder, digest=state.get("config_sha256"), force=force)
        check_versions(state.get("versions", versions()))
    else:
        folder.write_text(folder.config, config.to_yaml())
    if saved is not None:
        record["continued"] = [*_continued(folder), {"at_step": saved[0], **versions()}]
    with _timed(seconds, display, "loading models"):
        experiment = build(config)
    record["run"] = _name_of(folder) or labels_of(config, "training").run
    record["prompts"] = [source.as_dict() for source in experiment.sources]
    record |= _described_target(experiment)
    if not force:
        check_same_prompts(record["prompts"], folder)
    folder.write_json(folder.manifest, record)
    before = None
    if config.evaluation.before:
        with _timed(seconds, display, "evaluating the untrained attacker"):
            before = _evaluated_before(folder, saved) or evaluate(
                experiment, folder, "before", config, log
            )
    history = HistoryTracker()
    history.rows = kept_metrics(folder, 0 if saved is None else saved[0])
    trackers = MultiTracker([JSONLTracker(folder.metrics), history, _DisplayTracker(display)])
    trainer = RunTrainer(experiment, config, folder, trackers, log)
    if saved is not None:
        trainer.load_state_dict(saved[1])
        logger.info("going on after step %d", saved[0])
    del saved  # holds a copy of the weights
    with _timed(seconds, display, "training"):
        _train(trainer, folder, display)
    with _timed(seconds, display, "evaluating the trained attacker"):
        after, spent = evaluate_within_budget(experiment, folder, "after", config, log)
    log.flush()
    found = (log.attempts(phase=phase, outcome="success") for phase in ("after", "training"))
    write_failures(chain.from_iterable(found), folder.failures)
    warnings: tuple[str, ...] = ()
    if trainer.watch is not None:
        folder.write_lines(folder.reward_watch, trainer.watch.rows)
        warnings = (trainer.watch.warning,) if trainer.watch.warning else ()
    notes = (*warnings, *notes_on_calls(experiment, after, current_ledger()))
    result = Result(folder, before, after, trainer.completed_steps, seconds, notes)
    record |= {"warnings": notes, "spent": current_ledger().as_dict()}
    # Without the times of its stages the run is not done, and can be continued.
    folder.write_json(folder.manifest, record if spent else {**record, "seconds": seconds})
    with _timed(seconds, display, "writing the report"):
        write_run_page(folder)
    if spent is not None:
        raise spent
    return result


def _train(trainer: RunTrainer, folder: RunFolder, display: Display) -> None:
    """Train, and leave a state to go on from whatever ends it.

    Raises:
        InterruptedRunError: A signal ended it.
        BudgetSpentError: Nothing more may be spent; a step in progress was dropped.
        EndpointError: An endpoint does not answer; the same.
    """
    with interruptible(trainer.interrupt):
        display.training_begins(trainer.config.training_steps)
        try:
            trainer.train()
        except (BudgetSpentError, EndpointError):
            trainer.save_state()
            trainer.tracker.close()
            raise
        finally:  # a progress bar left open would garble the error
            display.training_ends()
    if trainer.interrupted:
        raise InterruptedRunError(
            f"interrupted after step {trainer.completed_steps}; everything is saved. "
            f"{how_to_go_on(folder)}"
        )
    if trainer.spent is not None:
        raise trainer.spent


def _evaluated_before(folder: RunFolder, saved: object) -> dict[str, Any] | None:
    """Return the evaluation that a run made before it was interrupted."""
    path = folder.evaluation("before")
    if saved is None or not path.is_file():
        return None
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return metrics


def _continued(folder: RunFolder) -> list[Any]:
    if not folder.manifest.is_file():
        return []
    earlier: list[Any] = folder.read_manifest().get("continued", [])
    return earlier


def evaluate(
    experiment: Experiment, folder: RunFolder, phase: str, config: RunConfig, log: AttemptLog
) -> dict[str, Any]:
    """Evaluate the attacker on the held-out conversations, record them and keep the result.

    Raises:
        BudgetSpentError: Nothing more may be spent; what was played is recorded.
    """
    metrics, spent = evaluate_within_budget(experiment, folder, phase, config, log, partly=False)
    if spent is not None:
        raise spent
    return metrics


def evaluate_within_budget(
    experiment: Experiment,
    folder: RunFolder,
    phase: str,
    config: RunConfig,
    log: AttemptLog,
    *,
    partly: bool = True,
) -> tuple[dict[str, Any], BudgetSpentError | None]:
    """Evaluate as `evaluate` does, and sum up what could be played if a budget ends it early.

    Returns:
        The metrics, and what was spent, if something was. They say under ``planned`` how many
        conversations there were to be.

    Raises:
        BudgetSpentError: Nothing was played, or `partly` is false.
    """
    experiment.problem.forget_scores()
    evaluator = experiment.evaluator
    evaluator.record = log.append
    evaluator.labels = labels_of(
        config, phase, run=_name_of(folder), categories=experiment.categories
    )
    ordinary = ordinary_use(config, experiment.problem)
    evaluator.likelihoods = {"baseline": ordinary.get_baseline_logprobs}
    planned = evaluator.planned * config.evaluation.trials
    plan_attempts(folder, phase, planned)
    metrics, spent = evaluated_within_budget(evaluator, planned, partly=partly)
    metrics["judge_quality"] = judge_quality(evaluator.judge, config.evaluation.calibrations)
    folder.write_json(folder.evaluation(phase), metrics)
    return metrics, spent


def _name_of(folder: RunFolder) -> str | None:
    """Return what the attempts of a run are filed under since it was begun.

    It stays when a run is gone on with by force: attempts that are made again replace the first.
    """
    known = folder.read_manifest().get("run") if folder.manifest.is_file() else None
    return known if isinstance(known, str) else None


def labels_of(
    config: RunConfig,
    phase: str,
    *,
    attacker: str | None = None,
    run: str | None = None,
    categories: Mapping[str, str] | None = None,
) -> Labels:
    """Say who plays in a part of a run, and of which kinds its openings are.

    None as `run` names it after the configuration.
    """
    state = {"before": "untrained", "training": "in training"}.get(phase, "trained")
    known = config.without_budget().to_yaml()
    digest = hashlib.blake2b(known.encode(), digest_size=6).hexdigest()
    return Labels(
        run or digest,
        phase,
        attacker or f"{config.attacker.model} ({state})",
        redact_settings(config.target.name),
        categories=categories or {},
    )


def _described_target(experiment: Experiment) -> dict[str, Any]:
    target = experiment.problem.target
    if not isinstance(target, Target):
        return {}
    identity = getattr(target, "identity", target.name)
    return {"target": {"identity": identity, "likelihood": "baseline", "note": NO_LIKELIHOODS}}


def manifest(config: RunConfig, command: str) -> dict[str, Any]:
    """Return what is needed to tell one run from another."""
    return {
        "schema_version": MANIFEST_VERSION,
        "title": config.title,
        "command": command,
        "seed": config.seed,
        "trust_remote_code": config.trust_remote_code,
        "config_sha256": hashlib.sha256(config.to_yaml().encode()).hexdigest(),
        "versions": versions(),
        "git_revision": git_revision(Path.cwd()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _share(marks: Iterable[bool]) -> float:
    known = list(marks)
    return sum(known) / len(known) if known else math.nan


def _is_overflow(node: Node[str, str]) -> bool:
    """Whether one of the two had no room left in its window."""
    reasons = (getattr(said, "finish_reason", None) for said in (node.attack, node.response))
    return "context_overflow" in reasons


def _token_count(node: Node[str, str]) -> int:
    said = (getattr(node.attack, "token_ids", None), getattr(node.response, "token_ids", None))
    return sum(len(ids) for ids in said if ids is not None)
