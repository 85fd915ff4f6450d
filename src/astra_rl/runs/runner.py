"""One run from configuration to report: evaluate, train, evaluate again, write it all down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from astra_rl.config.experiment import Experiment, build, ordinary_use
from astra_rl.config.resolve import Plan, resolve
from astra_rl.config.schema import RunConfig
from astra_rl.errors import (
    BudgetEndedError,
    BudgetSpentError,
    EndpointError,
    InterruptedRunError,
)
from astra_rl.evaluation.judges.calibration import judge_quality
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.ext.transformers.target_adapters import NO_LIKELIHOODS
from astra_rl.infra.checkpointing import remove_leftovers
from astra_rl.infra.redaction import redact_message
from astra_rl.logging import logger
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder, read_own
from astra_rl.runs.phases import plan_attempts
from astra_rl.runs.provenance import labels_of, manifest, name_of, versions
from astra_rl.runs.report import write_run_page
from astra_rl.runs.resume import (
    check_same_prompts,
    check_same_run,
    check_versions,
    ending_well,
    how_to_go_on,
    interruptible,
    kept_metrics,
)
from astra_rl.runs.spending import evaluated_within_budget, notes_on_calls, spending
from astra_rl.runs.trainer import RunTrainer, build_trainer, saved_identity
from astra_rl.targets.base import Target
from astra_rl.targets.ledger import current_ledger
from astra_rl.training.states import load_state
from astra_rl.training.trackers import HistoryTracker, JSONLTracker, MultiTracker, Tracker


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


class _DisplayTracker(Tracker):
    def __init__(self, display: Display) -> None:
        self.display = display

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.display.training_step(step, metrics)


def run_experiment(
    config: RunConfig | Plan,
    folder: RunFolder,
    display: Display | None = None,
    *,
    command: str = "",
    force: bool = False,
) -> Result:
    """Do a whole run and leave everything in its folder, or go on with one that ended early.

    Args:
        config: What to do: a configuration, or the plan that it was resolved to.
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
    plan = config if isinstance(config, Plan) else resolve(config)
    with ending_well(folder):
        if not folder.config.is_file():  # comes first: without it the folder is not known for a run
            folder.write_text(folder.config, plan.config.to_yaml())
        with AttemptLog(folder.attempts, write=True) as log:  # which nobody else may write now
            return _run_on_account(plan, folder, log, display or Display(), command, force)


def _run_on_account(
    plan: Plan,
    folder: RunFolder,
    log: AttemptLog,
    display: Display,
    command: str,
    force: bool,
) -> Result:
    """Do the run, charge its calls to the ledger in its folder, and say how to go on."""
    go_on = how_to_go_on(folder)
    try:
        with spending([plan], folder.path, keep_ledger=True) as ledger:
            try:
                return _do_run(plan, folder, log, display, command, force)
            except BudgetSpentError as error:
                ledger.ended_by.append(str(error))
                option = "--" + error.limit.replace("_", "-")
                raise BudgetEndedError(
                    f"{error}; everything is saved. {go_on} {option} {error.enough_to_go_on:.15g}"
                ) from error
    except EndpointError as error:
        raise EndpointError(f"{error} Everything is saved. {go_on}") from error


def _do_run(
    plan: Plan,
    folder: RunFolder,
    log: AttemptLog,
    display: Display,
    command: str,
    force: bool,
) -> Result:
    config, command = plan.config, redact_message(command)
    seconds: dict[str, float] = {}
    remove_leftovers(folder.states)
    remove_leftovers(folder.checkpoints)
    saved = load_state(folder.states)
    record = manifest(config, command)
    state = {} if saved is None else saved_identity(saved[1])
    check_same_run(config, folder, digest=state.get("config_sha256"), force=force)
    check_versions(state.get("versions", versions()))
    if saved is not None:
        record["continued"] = [*_continued(folder), {"at_step": saved[0], **versions()}]
    with _timed(seconds, display, "loading models"):
        experiment = build(plan)
    record["run"] = name_of(folder) or labels_of(config, "training").run
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
    training = build_trainer(experiment, config, folder, trackers, log)
    if saved is not None:
        training.trainer.load_state_dict(saved[1])
        logger.info("going on after step %d", saved[0])
    del saved  # holds a copy of the weights
    with _timed(seconds, display, "training"):
        _train(training, folder, display)
    with _timed(seconds, display, "evaluating the trained attacker"):
        after, spent = evaluate_within_budget(experiment, folder, "after", config, log)
    log.flush()
    found = (log.attempts(phase=phase, outcome="success") for phase in ("after", "training"))
    write_failures(chain.from_iterable(found), folder.failures)
    warnings: tuple[str, ...] = ()
    if training.watch is not None:
        folder.write_lines(folder.reward_watch, training.watch.rows)
        warnings = (training.watch.warning,) if training.watch.warning else ()
    notes = (*warnings, *notes_on_calls(experiment, after, current_ledger()))
    result = Result(folder, before, after, training.trainer.completed_steps, seconds, notes)
    record |= {"warnings": notes, "spent": current_ledger().as_dict()}
    # Without the times of its stages the run is not done, and can be continued.
    folder.write_json(folder.manifest, record if spent else {**record, "seconds": seconds})
    with _timed(seconds, display, "writing the report"):
        write_run_page(folder)
    if spent is not None:
        raise spent
    return result


def _train(training: RunTrainer, folder: RunFolder, display: Display) -> None:
    """Train; whatever ends it, a state to resume from is saved.

    Raises:
        InterruptedRunError: A signal ended it.
        BudgetSpentError: A budget was spent; a step in progress was dropped.
        EndpointError: An endpoint kept failing; a step in progress was dropped.
    """
    trainer = training.trainer
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = trainer.should_stop = True

    with interruptible(interrupt):
        display.training_begins(trainer.config.training_steps)
        try:
            trainer.train()
        finally:  # a progress bar left open would garble the error
            display.training_ends()
    if interrupted:
        raise InterruptedRunError(
            f"interrupted after step {trainer.completed_steps}; everything is saved. "
            f"{how_to_go_on(folder)}"
        )
    if training.budget.spent is not None:
        raise training.budget.spent


def _evaluated_before(folder: RunFolder, saved: object) -> dict[str, Any] | None:
    """Return the evaluation that a run made before it was interrupted."""
    path = folder.evaluation("before")
    if saved is None or not path.is_file():
        return None
    return read_own(path, dict)


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
    experiment.forget_scores()
    evaluator = experiment.evaluator
    evaluator.record = log.append
    evaluator.labels = labels_of(
        config, phase, run=name_of(folder), categories=experiment.categories
    )
    ordinary = ordinary_use(config, experiment.problem)
    evaluator.likelihoods = {"baseline": ordinary.get_baseline_logprobs}
    planned = evaluator.planned * config.evaluation.trials
    plan_attempts(folder, phase, planned)
    metrics, spent = evaluated_within_budget(evaluator, planned, partly=partly)
    metrics["judge_quality"] = judge_quality(evaluator.judge, config.evaluation.calibrations)
    folder.write_json(folder.evaluation(phase), metrics)
    return metrics, spent


def _described_target(experiment: Experiment) -> dict[str, Any]:
    target = experiment.problem.target
    if not isinstance(target, Target):
        return {}
    identity = target.identity
    return {"target": {"identity": identity, "likelihood": "baseline", "note": NO_LIKELIHOODS}}
