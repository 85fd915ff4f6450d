"""Execute a run: evaluate, train, evaluate again, and write the report."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from typing import Any, TypeGuard

from astra_rl.config.estimate import estimate, held_for_evaluation, needed
from astra_rl.config.experiment import Experiment, build
from astra_rl.config.resolve import Plan
from astra_rl.config.schema import RunConfig
from astra_rl.distributed.ranks import join
from astra_rl.errors import (
    BudgetEndedError,
    BudgetSpentError,
    EndpointError,
    InterruptedRunError,
)
from astra_rl.evaluation.measures.speech import describe_weak_attacker
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.ext.transformers.served_target import ServedTarget
from astra_rl.ext.transformers.target_adapters import NO_LOGPROBS_WARNING
from astra_rl.infra.checkpointing import remove_leftovers
from astra_rl.infra.redaction import redact_message, redact_settings
from astra_rl.logging import logger
from astra_rl.methods.ast_evaluator import EvaluationResult
from astra_rl.models.chat_template import template_time
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.file_types import PlayedEvaluation
from astra_rl.runs.folder import RunFolder, read_own
from astra_rl.runs.phases import PhaseResult, PhaseRun
from astra_rl.runs.processes import announce, dismiss, divided
from astra_rl.runs.provenance import labels_of, manifest, name_of, versions
from astra_rl.runs.recorded import Recorded, StoredAttempts, plan_attempts, withdraw_attempts
from astra_rl.runs.report import write_run_page
from astra_rl.runs.resume import (
    check_machine,
    check_same_prompts,
    check_same_run,
    check_versions,
    how_to_resume,
    interruptible,
    kept_metrics,
    resumable_errors,
)
from astra_rl.runs.spending import spending
from astra_rl.runs.trainer import RunTrainer, build_trainer, machine_of, saved_identity
from astra_rl.targets.base import Target
from astra_rl.targets.ledger import Ledger, current_ledger, describe_spent
from astra_rl.training.callbacks import TrainerCallback
from astra_rl.training.states import load_state
from astra_rl.training.trackers import (
    HistoryTracker,
    JSONLTracker,
    MultiTracker,
    Tracker,
    make_tracker,
)


class Display(TrainerCallback):
    """Progress display of a run: a callback of its training that is also told of other stages.

    This one shows nothing; override the methods you need. It is called after the callbacks that
    add metrics to the log of a step.
    """

    def stage(self, name: str) -> None:
        """Called when a stage begins, for instance ``"loading models"``."""

    def close(self) -> None:
        """Called when the training has ended, also by an error or a signal."""


@contextlib.contextmanager
def _timed(seconds: dict[str, float], display: Display, name: str) -> Iterator[None]:
    """Announce a stage to the display and measure its duration."""
    display.stage(name)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        folder: Folder of the run.
        before: Evaluation of the untrained attacker; None if it was not configured.
        after: Evaluation of the trained attacker.
        training_steps: Number of completed training steps.
        seconds: Duration of each stage.
        warnings: What a reader of the report must know first.
        ended: The budget that ended the run early, and the command that resumes it; None if the
            run is complete.
    """

    folder: RunFolder
    before: EvaluationResult | None
    after: EvaluationResult
    training_steps: int
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()
    ended: BudgetEndedError | None = None


def run_experiment(
    plan: Plan,
    folder: RunFolder,
    display: Display | None = None,
    *,
    command: str = "",
    force: bool = False,
) -> Result:
    """Execute a run and write its results to a folder, or resume one that ended early.

    Args:
        plan: The run, see `resolve`; a plan is used once.
        folder: Folder of the run.
        display: Shows progress.
        command: Command line that repeats the run, for the report.
        force: Resume although configuration or prompts have changed.

    Raises:
        InterruptedRunError: A signal stopped it, or a budget before its final evaluation; the run
            can be resumed.
        StorageError: The disk is full, or the folder read-only; the run can be resumed.
        AstraError: Any other failure, for instance a model that cannot be loaded.
    """
    with resumable_errors(folder):
        if not folder.config.is_file():  # written first: it marks the folder as a run
            folder.write_text(folder.config, plan.config.to_yaml())
        with AttemptLog(folder.attempts, write=True) as log:  # holds the lock of the run
            return _run_charged(plan, folder, log, display or Display(), command, force)


def _run_charged(
    plan: Plan,
    folder: RunFolder,
    log: AttemptLog,
    display: Display,
    command: str,
    force: bool,
) -> Result:
    """Execute the run and charge its calls to its ledger."""
    with charged(plan, folder) as ledger:
        started = folder.started
        with template_time(started):
            result, spent = _do_run(plan, folder, log, display, command, force, started)
        if spent is not None:
            result = replace(result, ended=budget_ended(ledger, spent, folder))
        return result


@contextlib.contextmanager
def charged(plan: Plan, folder: RunFolder) -> Iterator[Ledger]:
    """Charge all calls inside the block to the ledger of a run.

    Raises:
        BudgetEndedError: A budget was spent; the message has the command that resumes the run.
        EndpointError: An endpoint kept failing; the same.
    """
    try:
        with spending([plan], folder.path, keep_ledger=True) as ledger:
            try:
                yield ledger
            except BudgetSpentError as error:
                raise budget_ended(ledger, error, folder) from error
    except EndpointError as error:
        raise EndpointError(f"{error} Everything is saved. {how_to_resume(folder)}") from error


def budget_ended(ledger: Ledger, spent: BudgetSpentError, folder: RunFolder) -> BudgetEndedError:
    """Record in the ledger that a budget ended a session, and return the error that says so."""
    ledger.ended_by.append(str(spent))
    option = "--" + spent.limit.replace("_", "-")
    kept = " ".join(getattr(spent, "__notes__", ["everything is saved."]))
    return BudgetEndedError(
        f"{spent}; {kept} {how_to_resume(folder)} {option} {spent.sufficient_limit:.15g}"
    )


def _do_run(
    plan: Plan,
    folder: RunFolder,
    log: AttemptLog,
    display: Display,
    command: str,
    force: bool,
    started: datetime,
) -> tuple[Result, BudgetSpentError | None]:
    """Execute the run; also return the budget that ended its training or final evaluation."""
    config, command = plan.config, redact_message(command)
    seconds: dict[str, float] = {}
    remove_leftovers(folder.states)
    remove_leftovers(folder.checkpoints)
    saved = load_state(folder.states)
    record = manifest(config, command, started)
    state = {} if saved is None else saved_identity(saved[1])
    check_same_run(config, folder, digest=state.get("config_sha256"), force=force)
    check_versions(state.get("versions", versions()))
    if saved is not None:
        record["continued"] = [*_continued(folder), {"at_step": saved[0], **versions()}]
    ranks = join()
    announce(ranks, config, folder, started)
    with _timed(seconds, display, "loading models"), ranks.together():
        experiment = divided(build(plan), config, ranks)
    record["run"] = name_of(folder) or labels_of(config, "training").run
    record["prompts"] = [source.as_dict() for source in experiment.sources]
    record |= described_target(experiment.problem.target)
    if not force:
        check_same_prompts(record["prompts"], folder)
    folder.write_json(folder.manifest, record)
    before: EvaluationResult | None = None
    held = held_for_evaluation(plan)
    if config.evaluation.before:
        with (
            _timed(seconds, display, "evaluating the untrained attacker"),
            current_ledger().holding(held),
            _repeated_on_resume(),
        ):
            before = _evaluated_before(folder, saved) or evaluate(
                experiment, folder, "before", config, log, allow_partial=False
            )
    dismiss(experiment)
    weak = None if before is None else _warned_of_weakness(before)
    history = HistoryTracker()
    history.rows = kept_metrics(folder, 0 if saved is None else saved[0])
    trackers = MultiTracker(
        [
            JSONLTracker(folder.metrics),
            history,
            *_reported(config, folder, started, resumes=saved is not None),
        ]
    )
    training = build_trainer(experiment, config, folder, trackers, log, display)
    if saved is not None:
        check_machine(state.get("machine", {}), machine_of(experiment.problem))
        training.trainer.load_state_dict(saved[1])
        logger.info("resuming after step %d", saved[0])
    resumed_at = 0 if saved is None else saved[0]
    del saved  # holds a copy of the weights
    with _timed(seconds, display, "training"), current_ledger().holding(held):
        spent = _train(training, folder, display)
    if training.trainer.completed_steps > resumed_at:
        withdraw_attempts(log, "after", "the attacker was trained further since")
    with _timed(seconds, display, "evaluating the trained attacker"):
        after = evaluate(
            experiment,
            folder,
            "after",
            config,
            log,
            allow_partial=True,
            needs=needed(estimate(plan, training=False)),
        )
    dismiss(experiment)
    log.flush()
    found = (log.attempts(phase=phase, outcome="success") for phase in ("after", "training"))
    write_failures(chain.from_iterable(found), folder.failures)
    warnings: tuple[str, ...] = () if weak is None else (weak,)
    if training.watch is not None:
        folder.write_lines(folder.reward_watch, training.watch.rows)
        warnings += (training.watch.warning,) if training.watch.warning else ()
    if spent is not None:
        done = training.trainer.completed_steps
        warnings += (
            f"{str(spent)[0].upper()}{str(spent)[1:]}: it ended training after step {done} of "
            f"{config.training.steps}.",
        )
    spent = spent or after.spent
    warnings += tuple(warnings_of_calls(after))
    result = Result(folder, before, after, training.trainer.completed_steps, seconds, warnings)
    record |= {
        "warnings": warnings,
        "notes": list(notes_on_calls(experiment.problem.target)),
        "spent": current_ledger().as_dict(),
    }
    # A manifest without durations marks a run that is not complete and can be resumed.
    folder.write_json(folder.manifest, record if spent else {**record, "seconds": seconds})
    with _timed(seconds, display, "writing the report"):
        write_run_page(folder)
    return result, spent


def _reported(
    config: RunConfig, folder: RunFolder, started: datetime, *, resumes: bool
) -> Iterator[Tracker]:
    """Yield the trackers of `report_to`; a folder and the start of its run identify a run."""
    path = folder.path.resolve()
    run = hashlib.blake2b(f"{path} {started.isoformat()}".encode(), digest_size=8).hexdigest()
    settings = redact_settings(config.model_dump(mode="json"))
    for name in config.trackers:
        yield make_tracker(name, folder=path, run=run, settings=settings, resumes=resumes)


@contextlib.contextmanager
def _repeated_on_resume() -> Iterator[None]:
    """Say that an evaluation that a budget ended is repeated: no state precedes the training."""
    try:
        yield
    except BudgetSpentError as error:
        error.add_note(
            "the evaluation before training was in progress, and is repeated when the run resumes "
            "(replies of endpoints are cached, conversations with local models are not)."
        )
        raise


def _train(training: RunTrainer, folder: RunFolder, display: Display) -> BudgetSpentError | None:
    """Train; a state to resume from is saved, however training ends.

    Returns:
        The budget that ended it; a step in progress was dropped. None if it is complete.

    Raises:
        InterruptedRunError: A signal ended it.
        EndpointError: An endpoint kept failing; a step in progress was dropped.
    """
    trainer = training.trainer
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = trainer.should_stop = True

    with interruptible(interrupt):
        try:
            trainer.train()
        except BudgetSpentError as error:
            training.budget.spent = error
        finally:  # a progress bar left open would garble the error
            display.close()
    if trainer.ranks.any(interrupted):
        raise InterruptedRunError(
            f"interrupted after step {trainer.completed_steps}; everything is saved. "
            f"{how_to_resume(folder)}"
        )
    return training.budget.spent


def _warned_of_weakness(before: EvaluationResult) -> str | None:
    """Log and return a warning if the untrained attacker hardly speaks, before it is trained."""
    attacks = (turn.attack for attempt in before.attempts for turn in attempt.turns)
    warning = describe_weak_attacker(attacks)
    if warning is not None:
        logger.warning(warning)
    return warning


def _evaluated_before(folder: RunFolder, saved: object) -> EvaluationResult | None:
    """Return the evaluation before training that an interrupted run already made."""
    path = folder.evaluation("before")
    if saved is None or not path.is_file():
        return None
    with Recorded(folder, "before") as recorded:
        summary = recorded.summary()
    return EvaluationResult(
        StoredAttempts(folder, "before"), summary, read_own(path, PlayedEvaluation)
    )


def _continued(folder: RunFolder) -> list[Any]:
    if not folder.manifest.is_file():
        return []
    earlier: list[Any] = folder.read_manifest().get("continued", [])
    return earlier


def evaluate(
    experiment: Experiment,
    folder: RunFolder,
    phase: str,
    config: RunConfig,
    log: AttemptLog,
    *,
    allow_partial: bool,
    needs: Mapping[str, float] | None = None,
) -> PhaseResult:
    """Evaluate the attacker on the held-out openings, record the attempts and write the metrics.

    See `PhaseRun` for `allow_partial`, and `PhaseRun.play` for `needs`.

    Raises:
        BudgetSpentError: No conversation could be completed, or `allow_partial` is False; what was
            played is recorded.
    """
    experiment.forget_scores()
    planned = len(experiment.held_out) * config.evaluation.trials
    plan_attempts(folder, phase, planned)
    phase_run = PhaseRun(
        config,
        phase,
        experiment.problem,
        experiment.judge,
        log,
        run=name_of(folder),
        categories=experiment.categories,
        allow_partial=allow_partial,
    )
    result = phase_run.play(
        experiment.evaluation_environment, experiment.held_out, planned, needs=needs
    )
    folder.write_json(folder.evaluation(phase), result.metrics)
    return result


def describe_all_failed(attempts: Sequence[Attempt]) -> str:
    """Return an error message if every conversation failed, with the most frequent reason.

    An evaluation of which nothing is known is no result, whatever an automation does with its
    numbers. The text is empty if one conversation has an outcome, or if there are none.
    """
    if not attempts or any(each.outcome is not Outcome.ERROR for each in attempts):
        return ""
    ((reason, _),) = Counter(each.error for each in attempts).most_common(1)
    return (
        f"all {len(attempts)} conversations failed, so nothing is known about the target: {reason}."
    )


def warnings_of_calls(result: EvaluationResult) -> Iterator[str]:
    """Yield warnings for the report about conversations of an evaluation that calls left out."""
    errors = [each for each in result.attempts if each.outcome is Outcome.ERROR]
    if errors:
        reasons = Counter(each.reasons[-1] for each in errors if each.reasons)
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        yield (
            f"In {len(errors)} conversations a model call failed ({listed}). They are excluded "
            "from the rates; the bounds of the rate cover all their possible outcomes."
        )
    if result.summary.never_made:
        yield (
            f"A budget ended the evaluation: {len(result.attempts)} of {result.summary.planned} "
            "conversations were played, chosen at random. The outcomes of the others are unknown."
        )


def notes_on_calls(target: object) -> Iterator[str]:
    """Yield notes for the report about endpoint calls, with what was spent on them.

    Args:
        target: The target; one that is no `Target` is a local model.
    """
    ledger = current_ledger()
    if _is_black_box(target):
        yield f"The target is remote (black box): {target.name}; {NO_LOGPROBS_WARNING}."
    spent = describe_spent(ledger.as_dict())
    if spent:
        yield f"Spent on calls: {spent}."
    for ended in dict.fromkeys(ledger.ended_by):
        yield f"A session of this run was ended early: {ended}."


def _is_black_box(target: object) -> TypeGuard[Target]:
    return isinstance(target, Target) and not isinstance(target, ServedTarget)


def described_target(target: object) -> dict[str, Any]:
    """Return the entry of a remote target in the manifest; empty for a local model.

    One in an inference engine is local in this sense: its probabilities are known.
    """
    if not _is_black_box(target):
        return {}
    identity = target.identity
    return {"target": {"identity": identity, "likelihood": "baseline", "note": NO_LOGPROBS_WARNING}}
