"""Test a target with given prompts, as they are or by a prompted attacker; nothing is trained."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime

from astra_rl.actions.attacks import DIRECT, GivenAttack, GivenAttacks, given_attacks
from astra_rl.config.estimate import EstimateRow, estimate, estimate_given, needed
from astra_rl.config.resolve import Plan
from astra_rl.config.schema import PromptedAttackerConfig
from astra_rl.core.environment import Environment
from astra_rl.errors import BudgetEndedError, ConfigurationError, EndpointError
from astra_rl.evaluation.measures.speech import describe_weak_attacker
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.infra.redaction import redact_message
from astra_rl.logging import logger
from astra_rl.methods.ast_evaluator import EvaluationResult
from astra_rl.methods.prompted_attacker import PromptedAttackerProblem
from astra_rl.methods.replay import TargetOnlyProblem
from astra_rl.models.chat_template import template_time
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.phases import PhaseResult, PhaseRun
from astra_rl.runs.provenance import PROMPTS, labels_of, manifest, name_of
from astra_rl.runs.recorded import plan_attempts
from astra_rl.runs.report import write_run_page
from astra_rl.runs.result import RunResult
from astra_rl.runs.resume import check_same_prompts, check_same_run, resumable_errors
from astra_rl.runs.runner import (
    budget_ended,
    charged,
    describe_all_failed,
    described_target,
    notes_on_calls,
    warnings_of_calls,
)
from astra_rl.targets.base import Target
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


def requests_of(plan: Plan) -> list[GivenAttack]:
    """Return what a test sends, each prompt `evaluation.trials` times.

    Raises:
        ConfigurationError: A prompt has no text to send.
    """
    openings = list(plan.openings.test)
    return given_attacks(DIRECT, openings) * plan.config.evaluation.trials


def planned_conversations(plan: Plan) -> int:
    """Return the number of conversations of a test."""
    return len(plan.openings.test) * plan.config.evaluation.trials


def estimate_test(plan: Plan) -> list[EstimateRow]:
    """Return the largest number of calls and tokens of `run_test`; nothing is sent or loaded."""
    if plan.attacker is not None:
        return estimate(plan, training=False)
    sent = requests_of(plan)
    return estimate_given(plan, [each.context for each in sent], [[each.attack] for each in sent])


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
    if plan.config.has_local_attacker:
        raise ConfigurationError("a test trains no attacker: leave out 'attacker', or use 'train'.")
    sent = None if plan.attacker is not None else requests_of(plan)
    with resumable_errors(folder):
        if not folder.config.is_file():  # written first: it marks the folder as a run
            folder.write_text(folder.config, plan.config.to_yaml())
        check_same_run(plan.config, folder, force=force)
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
    config, target = plan.config, plan.target
    assert target is not None  # of a plan without a local attacker
    record = {
        **manifest(config, redact_message(command), started),
        "run": name_of(folder) or labels_of(config, PHASE).run,
        "prompts": [source.as_dict() for source in plan.openings.sources],
        **described_target(target),
    }
    if not force:
        check_same_prompts(record["prompts"], folder)
    folder.write_json(folder.manifest, record)
    clock = time.perf_counter()
    plan.load_deferred()
    judge = plan.evaluation_judge.load()
    planned = planned_conversations(plan)
    plan_attempts(folder, PHASE, planned)
    environment = _environment(plan, target, sent)
    phase = PhaseRun(
        config,
        PHASE,
        environment.problem,
        judge,
        log,
        run=record["run"],
        categories=plan.openings.categories,
    )
    needs = needed(estimate_test(plan))
    if sent is None:
        result = phase.play(environment, plan.openings.test, planned, needs=needs)
    else:
        ids: dict[int | str, str] = {at: each.prompt_id for at, each in enumerate(sent)}
        result = phase.play(
            environment, range(planned), planned, attacker=PROMPTS, prompt_ids=ids, needs=needs
        )
    log.flush()
    spent = current_ledger().as_dict()
    metrics = {**result.metrics, "spent": spent}
    folder.write_json(folder.evaluation(PHASE), metrics)
    write_failures(log.attempts(phase=PHASE, outcome="success"), folder.failures)
    record["warnings"] = [*warnings_of_attacks(plan, result), *warnings_of_calls(result)]
    record["notes"] = list(notes_on_calls(None))
    record["spent"] = spent
    nothing = result.spent is None and describe_all_failed(result.attempts)
    if result.spent is None and not nothing:  # without durations, a run is not complete
        record["seconds"] = {"testing": time.perf_counter() - clock}
    folder.write_json(folder.manifest, record)
    write_run_page(folder)
    if nothing:
        raise EndpointError(nothing)
    return replace(result, metrics=metrics)


def _environment(
    plan: Plan, target: Target, sent: list[GivenAttack] | None
) -> Environment[str, str]:
    """Return what plays the conversations: the given attacks, or the attacker of the plan."""
    if sent is not None:
        problem = TargetOnlyProblem(target, plan.evaluation_judge.load())
        return GivenAttacks(problem, sent, seed=plan.config.seed)
    environment: Environment[str, str] = plan.environment(
        prompted_problem(plan), plan.openings.test
    )
    return environment


def prompted_problem(plan: Plan) -> PromptedAttackerProblem:
    """Return the problem of a plan whose attacker is prompted.

    Raises:
        AstraError: The moderator of the reward cannot be loaded.
    """
    section = plan.config.attacker
    assert isinstance(section, PromptedAttackerConfig)
    assert plan.attacker is not None
    assert plan.target is not None
    plan.load_deferred()
    return PromptedAttackerProblem(
        plan.attacker, plan.target, plan.moderator.load(), plan.reward, extraction=section.extract
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
