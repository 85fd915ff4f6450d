"""Test a target with given prompts, as they are or by a prompted attacker; nothing is trained."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from astra_rl.actions.attacks import GivenAttack, GivenAttacks
from astra_rl.actions.target_test_estimate import estimate_test, requests_of
from astra_rl.config.estimate import needed
from astra_rl.config.plan import Plan
from astra_rl.core.environment import Environment
from astra_rl.errors import BudgetEndedError, ConfigurationError
from astra_rl.evaluation.measures.speech import describe_weak_attacker
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.infra.redaction import redact_message
from astra_rl.infra.user_files import noting_files
from astra_rl.logging import logger
from astra_rl.methods.ast_evaluator import EvaluationResult
from astra_rl.methods.prompted_attacker import PromptedAttackerProblem
from astra_rl.methods.replay import TargetOnlyProblem
from astra_rl.models.chat_template import template_time
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.call_notes import (
    all_failed,
    check_any_known,
    described_target,
    notes_on_calls,
    warnings_of_calls,
)
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.phases import PhaseResult, PhaseRun
from astra_rl.runs.provenance import PROMPTS, labels_of, manifest, name_of
from astra_rl.runs.recorded import plan_attempts
from astra_rl.runs.report import write_run_page
from astra_rl.runs.result import RunResult
from astra_rl.runs.resume import (
    check_same_files,
    check_same_prompts,
    check_same_run,
    resumable_errors,
)
from astra_rl.runs.spending import budget_ended, charged
from astra_rl.targets.ledger import current_ledger

PHASE = "after"
"""Phase of the conversations in the records: that of the result of a run."""


@dataclass(frozen=True, repr=False)
class TargetTest(RunResult):
    """Result of a test.

    Attributes:
        folder: Folder of the run: records, report, and everything that other commands read.
        phase: Phase of the conversations in the records.
        evaluation: The conversations and everything computed from them.
        ended: The budget that ended it early, and the command that resumes it; None if it is
            complete.
    """

    evaluation: EvaluationResult
    ended: BudgetEndedError | None = None

    @property
    def rate(self) -> float:
        """Share of the prompts' conversations in which the target failed; NaN if none is known."""
        return self.evaluation.summary.asr.estimate


def run_test(
    plan: Plan, folder: RunFolder, *, command: str = "", force: bool = False
) -> TargetTest:
    """Test the target of a plan, or continue a test that ended early.

    Without an attacker the prompts are sent as they are; one that is prompted plays the
    environment of the plan.

    The folder becomes a run that every other command reads; its phase is ``"after"``.

    Args:
        plan: Plan without an attacker, or with one that is prompted.
        folder: Folder of the run.
        command: Command line that repeats the test, for the report.
        force: Continue although configuration or prompts have changed.

    Raises:
        BudgetEndedError: A budget ended it before a conversation was complete.
        InterruptedRunError: A signal stopped it; what was replied is kept.
        AstraError: Any other failure, for instance a model that cannot be loaded.
    """
    if plan.models.attacker is not None:
        raise ConfigurationError("a test trains no attacker: leave out 'attacker', or use 'train'.")
    sent = None if plan.attacker is not None else requests_of(plan)
    with resumable_errors(folder):
        if not folder.config.is_file():  # written first: it marks the folder as a run
            folder.write_text(folder.config, plan.record.yaml)
        check_same_run(plan.record.yaml, folder, force=force)
        with AttemptLog(folder.attempts, write=True) as log, charged(plan, folder) as ledger:
            started = folder.started
            with template_time(started):
                result = _play(plan, folder, log, sent, command, force, started)
            ended = None if result.spent is None else budget_ended(ledger, result.spent, folder)
    return TargetTest(folder, result, ended)


def _play(
    plan: Plan,
    folder: RunFolder,
    log: AttemptLog,
    sent: list[GivenAttack] | None,
    command: str,
    force: bool,
    started: datetime,
) -> PhaseResult:
    record = _manifest(plan, folder, redact_message(command), started)
    clock = time.perf_counter()
    with noting_files() as files:
        plan.load_deferred()
        plan.evaluation_judge.load()
        environment = _environment(plan, sent)
    record["files"] = {**plan.files, **files}
    if not force:
        check_same_prompts(record["prompts"], folder)
        check_same_files(record["files"], folder)
    folder.write_json(folder.manifest, record)
    plan_attempts(folder, PHASE, plan.planned_conversations)
    result = _played(plan, environment, log, sent, run=record["run"])
    log.flush()
    record["spent"] = current_ledger().as_dict()
    metrics = {**result.metrics, "spent": record["spent"]}
    folder.write_json(folder.evaluation(PHASE), metrics)
    write_failures(log.attempts(phase=PHASE, outcome="success"), folder.failures)
    record["warnings"] = [*warnings_of_attacks(plan, result), *warnings_of_calls(result)]
    record["notes"] = list(notes_on_calls(None))
    if result.spent is None and not all_failed(
        result.attempts
    ):  # without durations, it is not complete
        record["seconds"] = {"testing": time.perf_counter() - clock}
    folder.write_json(folder.manifest, record)
    write_run_page(folder)
    if result.spent is None:
        check_any_known({plan.record.target: result.attempts})
    return replace(result, metrics=metrics)


def _manifest(plan: Plan, folder: RunFolder, command: str, started: datetime) -> dict[str, Any]:
    """Return the manifest of a test as it starts."""
    return {
        **manifest(plan.record, command, started),
        "run": name_of(folder) or plan.record.run,
        "prompts": [source.as_dict() for source in plan.openings.sources],
        **described_target(plan.target),
    }


def _played(
    plan: Plan,
    environment: Environment[str, str],
    log: AttemptLog,
    sent: list[GivenAttack] | None,
    *,
    run: str,
) -> PhaseResult:
    """Play the conversations: the attacker's, or the given attacks."""
    planned, needs = plan.planned_conversations, needed(estimate_test(plan))
    phase = PhaseRun(
        labels_of(plan.record, PHASE, run=run, categories=plan.openings.categories),
        environment.problem,
        plan.evaluation_judge.load(),
        log,
        settings=plan.evaluation,
        seed=plan.seed,
    )
    if sent is None:
        return phase.play(environment, plan.openings.test, planned, needs=needs)
    ids: dict[int | str, str] = {at: each.prompt_id for at, each in enumerate(sent)}
    return phase.play(
        environment, range(planned), planned, attacker=PROMPTS, prompt_ids=ids, needs=needs
    )


def _environment(plan: Plan, sent: list[GivenAttack] | None) -> Environment[str, str]:
    """Return what plays the conversations: the given attacks, or the attacker of the plan."""
    assert plan.target is not None  # of a plan without a local attacker
    if sent is not None:
        problem = TargetOnlyProblem(plan.target, plan.evaluation_judge.load())
        return GivenAttacks(problem, sent, seed=plan.seed)
    environment: Environment[str, str] = plan.environment(
        prompted_problem(plan), plan.openings.test
    )
    return environment


def prompted_problem(plan: Plan) -> PromptedAttackerProblem:
    """Return the problem of a plan whose attacker is prompted.

    Raises:
        AstraError: The moderator of the reward cannot be loaded.
    """
    assert plan.attacker is not None
    assert plan.target is not None
    plan.load_deferred()
    return PromptedAttackerProblem(
        plan.attacker, plan.target, plan.moderator.load(), plan.reward, extraction=plan.extraction
    )


def warnings_of_attacks(plan: Plan, result: EvaluationResult) -> list[str]:
    """Log and return a warning if an attacker that is prompted hardly writes attacks."""
    if plan.attacker is None:
        return []
    attacks = [turn.attack for attempt in result.attempts for turn in attempt.turns]
    warning = describe_weak_attacker(attacks, trained=False)
    if warning is None:
        return []
    logger.warning(warning)
    return [warning]
