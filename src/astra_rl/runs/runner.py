"""Execute a run: evaluate, train, evaluate again, and write the report."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from typing import Any

from astra_rl.config.estimate import estimate, held_for_evaluation, needed
from astra_rl.config.experiment import Experiment, build
from astra_rl.config.plan import Plan
from astra_rl.distributed.ranks import join
from astra_rl.errors import BudgetEndedError, BudgetSpentError, InterruptedRunError
from astra_rl.evaluation.measures.speech import describe_weak_attacker
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.infra.checkpointing import remove_leftovers
from astra_rl.infra.redaction import redact_message
from astra_rl.infra.user_files import noting_files
from astra_rl.logging import logger
from astra_rl.methods.archive import ArchiveEnvironment
from astra_rl.methods.ast_evaluator import EvaluationResult
from astra_rl.models.chat_template import template_time
from astra_rl.runs.archives import write_archive
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.call_notes import (
    all_calls_failed,
    check_any_known,
    described_target,
    notes_on_calls,
    warnings_of_calls,
)
from astra_rl.runs.file_types import PlayedEvaluation
from astra_rl.runs.folder import RunFolder, read_own
from astra_rl.runs.phases import PhaseResult, PhaseRun, kind_embedder
from astra_rl.runs.processes import announce, dismiss, divided, signal_grace
from astra_rl.runs.provenance import labels_of, manifest, name_of, versions
from astra_rl.runs.recorded import Recorded, StoredAttempts, plan_attempts, withdraw_attempts
from astra_rl.runs.report import write_run_page
from astra_rl.runs.resume import (
    check_machine,
    check_same_files,
    check_same_prompts,
    check_same_run,
    check_versions,
    how_to_resume,
    interruptible,
    kept_metrics,
    resumable_errors,
)
from astra_rl.runs.spending import budget_ended, charged
from astra_rl.runs.trainer import RunTrainer, build_trainer, machine_of, saved_identity
from astra_rl.targets.ledger import current_ledger
from astra_rl.training.callbacks import TrainerCallback
from astra_rl.training.states import load_state
from astra_rl.training.trackers import (
    HistoryTracker,
    JSONLTracker,
    Tracker,
    closed_on_error,
    make_tracker,
)


class Display(TrainerCallback):
    """Progress display of a run: a callback of its training that is also told of other stages.

    This one shows nothing; override the methods you need. It is called after the callbacks that
    add metrics to the log of a step.
    """

    def stage(self, name: str) -> None:
        """Called when a stage begins, for instance ``"loading models"``."""


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
            folder.write_text(folder.config, plan.record.yaml)
        with AttemptLog(folder.attempts, write=True) as log:  # holds the lock of the run
            session = _Session(plan, folder, log, display or Display())
            return _run_charged(session, plan, folder, command, force)


def _run_charged(
    session: _Session, plan: Plan, folder: RunFolder, command: str, force: bool
) -> Result:
    """Execute the run and charge its calls to its ledger."""
    with charged(plan, folder) as ledger:
        started = folder.started
        with template_time(started):
            result, spent = session.run(command, started, force=force)
        if spent is not None:
            result = replace(result, ended=budget_ended(ledger, spent, folder))
        return result


_State = tuple[int, dict[str, Any]]
"""Number of completed training steps, and the training state."""


class _Session:
    """One session of a run, from its start or from its newest training state.

    Args:
        plan: The run.
        folder: Its folder.
        log: Its attempts.
        display: Shows progress.
    """

    def __init__(self, plan: Plan, folder: RunFolder, log: AttemptLog, display: Display) -> None:
        self.plan, self.folder, self.log, self.display = plan, folder, log, display
        self.held = held_for_evaluation(plan)
        self.seconds: dict[str, float] = {}

    def run(
        self, command: str, started: datetime, *, force: bool
    ) -> tuple[Result, BudgetSpentError | None]:
        """Execute it; also return the budget that ended its training or final evaluation."""
        folder = self.folder
        remove_leftovers(folder.states)
        remove_leftovers(folder.checkpoints)
        saved = load_state(folder.states)
        record = self._manifest(saved, redact_message(command), started, force=force)
        ranks = join()
        announce(ranks, self.plan.record.yaml, folder, started)
        with self._timed("loading models"), ranks.together():
            with noting_files() as files:
                experiment = divided(build(self.plan), self.plan.training.shards, ranks)
            record["files"] = {**self.plan.files, **files}
            if not force:
                check_same_files(record["files"], folder)
            kind_embedder(self.plan.evaluation)  # one that cannot be used fails before the training
        record |= described_target(experiment.problem.target)
        folder.write_json(folder.manifest, record)
        before = self._before(experiment, resumes=saved is not None)
        dismiss(experiment)
        weak = None if before is None else _warned_of_weakness(before)
        training = self._trainer(experiment, saved, started)
        del saved  # holds a copy of the weights
        resumed_at = training.trainer.completed_steps
        with self._timed("training"), current_ledger().holding(self.held):
            spent = _train(training, folder)
        steps = training.trainer.completed_steps
        if steps > resumed_at:
            withdraw_attempts(self.log, "after", "the attacker was trained further since")
        after = self._after(experiment)
        dismiss(experiment)
        warnings = (
            *([] if weak is None else [weak]),
            *self._warnings_of_training(training, spent),
            *warnings_of_calls(after),
        )
        record["warnings"] = warnings
        record["notes"] = list(notes_on_calls(experiment.problem.target))
        spent = spent or after.spent
        self._end(record, after, is_complete=spent is None)
        return Result(folder, before, after, steps, self.seconds, warnings), spent

    def _manifest(
        self, saved: _State | None, command: str, started: datetime, *, force: bool
    ) -> dict[str, Any]:
        """Return the manifest of the run as it starts, or resumes from a state.

        Raises:
            ConfigurationError: It was started with another configuration or other prompts.
        """
        plan, folder = self.plan, self.folder
        state = {} if saved is None else saved_identity(saved[1])
        digest = state.get("config_sha256")
        check_same_run(plan.record.yaml, folder, digest=digest, force=force)
        check_versions(state.get("versions", versions()))
        record = manifest(plan.record, command, started)
        if saved is not None:
            record["continued"] = [*_continued(folder), {"at_step": saved[0], **versions()}]
        record["run"] = name_of(folder) or plan.record.run
        record["prompts"] = [source.as_dict() for source in plan.openings.sources]
        if not force:
            check_same_prompts(record["prompts"], folder)
        return record

    def _before(self, experiment: Experiment, *, resumes: bool) -> EvaluationResult | None:
        """Evaluate the untrained attacker, if configured; an earlier session may have done it."""
        if not self.plan.evaluation.before:
            return None
        with (
            self._timed("evaluating the untrained attacker"),
            current_ledger().holding(self.held),
            _repeated_on_resume(),
        ):
            known = _evaluated_before(self.folder) if resumes else None
            return known or self._evaluate(experiment, "before", allow_partial=False)

    def _trainer(
        self, experiment: Experiment, saved: _State | None, started: datetime
    ) -> RunTrainer:
        """Return the trainer, at the step of the state."""
        plan, folder = self.plan, self.folder
        step = 0 if saved is None else saved[0]
        history = HistoryTracker()
        history.rows = kept_metrics(folder, step)
        reported = _reported(plan, folder, started, resumes=saved is not None)
        with closed_on_error(chain([JSONLTracker(folder.metrics), history], reported)) as trackers:
            training = build_trainer(experiment, plan, folder, trackers, self.log, self.display)
            if saved is not None:
                known = saved_identity(saved[1]).get("machine", {})
                check_machine(known, machine_of(experiment.problem))
                training.trainer.load_state_dict(saved[1])
                logger.info("resuming after step %d", step)
        return training

    def _after(self, experiment: Experiment) -> PhaseResult:
        """Evaluate the trained attacker, within what the budget has left."""
        with self._timed("evaluating the trained attacker"):
            needs = needed(estimate(self.plan, training=False))
            after = self._evaluate(experiment, "after", allow_partial=True, needs=needs)
        self.log.flush()
        phases = ("after", "training")
        found = (self.log.attempts(phase=phase, outcome="success") for phase in phases)
        write_failures(chain.from_iterable(found), self.folder.failures)
        return after

    def _evaluate(
        self,
        experiment: Experiment,
        phase: str,
        *,
        allow_partial: bool,
        needs: Mapping[str, float] | None = None,
    ) -> PhaseResult:
        """Evaluate the attacker on the held-out openings, record it and write the metrics.

        See `PhaseRun` for `allow_partial`, and `PhaseRun.play` for `needs`.

        Raises:
            BudgetSpentError: No conversation could be completed, or `allow_partial` is False; what
                was played is recorded.
        """
        plan, folder = self.plan, self.folder
        experiment.forget_scores()
        plan_attempts(folder, phase, plan.planned_conversations)
        categories = plan.openings.categories
        phase_run = PhaseRun(
            labels_of(plan.record, phase, run=name_of(folder), categories=categories),
            experiment.problem,
            experiment.judge,
            self.log,
            settings=plan.evaluation,
            seed=plan.seed,
            allow_partial=allow_partial,
        )
        result = phase_run.play(
            experiment.evaluation_environment,
            experiment.held_out,
            plan.planned_conversations,
            needs=needs,
        )
        folder.write_json(folder.evaluation(phase), result.metrics)
        return result

    def _warnings_of_training(
        self, training: RunTrainer, spent: BudgetSpentError | None
    ) -> Iterator[str]:
        """Yield what a reader must know of the training, and write what was watched and kept."""
        if isinstance(environment := training.trainer.environment, ArchiveEnvironment):
            write_archive(self.folder, environment.archive)
        if training.watch is not None:
            self.folder.write_lines(self.folder.reward_watch, training.watch.rows)
            if training.watch.warning:
                yield training.watch.warning
        if spent is not None:
            yield (
                f"{str(spent)[0].upper()}{str(spent)[1:]}: it ended training after step "
                f"{training.trainer.completed_steps} of {self.plan.training.steps}."
            )

    def _end(self, record: dict[str, Any], after: PhaseResult, *, is_complete: bool) -> None:
        """Write the manifest and the report.

        Raises:
            EndpointError: The calls of every conversation of the final evaluation failed; the run
                can be resumed.
        """
        failed = is_complete and all_calls_failed(after.attempts)
        record["spent"] = current_ledger().as_dict()
        # A manifest without durations marks a run that is not complete and can be resumed.
        ended = {"seconds": self.seconds} if is_complete and not failed else {}
        self.folder.write_json(self.folder.manifest, record | ended)
        with self._timed("writing the report"):
            write_run_page(self.folder)
        if failed:
            check_any_known({self.plan.record.target: after.attempts})

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Announce a stage to the display and measure its duration."""
        self.display.stage(name)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def _reported(
    plan: Plan, folder: RunFolder, started: datetime, *, resumes: bool
) -> Iterator[Tracker]:
    """Yield the trackers of `report_to`; a folder and the start of its run identify a run."""
    path = folder.path.resolve()
    run = hashlib.blake2b(f"{path} {started.isoformat()}".encode(), digest_size=8).hexdigest()
    settings = dict(plan.record.settings)
    for name in plan.trackers:
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


def _train(training: RunTrainer, folder: RunFolder) -> BudgetSpentError | None:
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

    with interruptible(interrupt, grace=signal_grace(trainer.ranks)):
        try:
            trainer.train()
        except BudgetSpentError as error:
            training.budget.spent = error
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


def _evaluated_before(folder: RunFolder) -> EvaluationResult | None:
    """Return the evaluation before training that an interrupted run already made."""
    path = folder.evaluation("before")
    if not path.is_file():
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
