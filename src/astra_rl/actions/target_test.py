"""Test a target with given prompts: send each, judge the reply, write the report. No attacker."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime

from astra_rl.actions.attacks import DIRECT, GivenAttack, GivenAttacks, given_attacks
from astra_rl.config.estimate import EstimateRow, estimate_given, needed
from astra_rl.config.resolve import Plan
from astra_rl.core.text import Conversation
from astra_rl.errors import BudgetEndedError, ConfigurationError
from astra_rl.evaluation.show.escaping import framed_page
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.infra.redaction import redact_message
from astra_rl.methods.ast_evaluator import EvaluationResult
from astra_rl.methods.replay import TargetOnlyProblem
from astra_rl.models.chat_template import template_time
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.phases import PhaseResult, PhaseRun, plan_attempts
from astra_rl.runs.provenance import PROMPTS, labels_of, manifest, name_of
from astra_rl.runs.report import write_run_page
from astra_rl.runs.resume import check_same_prompts, check_same_run, resumable_errors
from astra_rl.runs.runner import (
    budget_ended,
    charged,
    described_target,
    notes_on_calls,
    warnings_of_calls,
)
from astra_rl.targets.ledger import current_ledger

PHASE = "after"
"""Phase of the conversations in the records: that of the result of a run."""


@dataclass(frozen=True)
class TargetTest:
    """Result of a test.

    Attributes:
        folder: Folder of the run: records, report, and everything that other commands read.
        evaluation: The conversations and everything computed from them.
        ended: The budget that ended it early, and the command that resumes it; None if it is
            complete.
    """

    folder: RunFolder
    evaluation: EvaluationResult
    ended: BudgetEndedError | None = None

    @property
    def rate(self) -> float:
        """Share of the prompts' conversations in which the target failed; NaN if none is known."""
        return self.evaluation.summary.asr.estimate

    def __repr__(self) -> str:
        """Return the rate and where the report is; the conversations are in `evaluation`."""
        return f"<TargetTest: {self.evaluation.summary.asr.text}; {self.folder.report}>"

    def _repr_html_(self) -> str:
        """Return the report, for a notebook."""
        return framed_page(self.folder.report.read_text(encoding="utf-8"))


def requests_of(plan: Plan) -> list[GivenAttack]:
    """Return what a test sends, each prompt `evaluation.trials` times.

    Raises:
        ConfigurationError: A prompt has no text to send.
    """
    openings = list(plan.openings.test)
    return given_attacks(DIRECT, openings) * plan.config.evaluation.trials


def estimate_test(plan: Plan) -> list[EstimateRow]:
    """Return the largest number of calls and tokens of `run_test`; nothing is sent or loaded."""
    sent = [Conversation(each.attack, system=each.context.system) for each in requests_of(plan)]
    return estimate_given(plan, sent, [1] * len(sent))


def run_test(
    plan: Plan, folder: RunFolder, *, command: str = "", force: bool = False
) -> TargetTest:
    """Test the target of a plan with its prompts, or continue a test that ended early.

    The folder becomes a run that every other command reads; its phase is ``"after"``.

    Args:
        plan: Plan without an attacker.
        folder: Folder of the run.
        command: Command line that repeats the test, for the report.
        force: Continue although configuration or prompts have changed.

    Raises:
        BudgetEndedError: A budget ended it before a conversation was complete.
        InterruptedRunError: A signal stopped it; what was replied is kept.
        AstraError: Any other failure, for instance a model that cannot be loaded.
    """
    sent = requests_of(plan)
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
    sent: list[GivenAttack],
    command: str,
    force: bool,
    started: datetime,
) -> PhaseResult:
    config, target = plan.config, plan.target
    if target is None:
        raise ConfigurationError("a test has no attacker: leave out 'attacker', or use 'train'.")
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
    problem = TargetOnlyProblem(target, judge)
    plan_attempts(folder, PHASE, len(sent))
    phase = PhaseRun(
        config, PHASE, problem, judge, log, run=record["run"], categories=plan.openings.categories
    )
    result = phase.play(
        GivenAttacks(problem, sent, seed=config.seed),
        range(len(sent)),
        len(sent),
        attacker=PROMPTS,
        prompt_ids={number: each.prompt_id for number, each in enumerate(sent)},
        needs=needed(estimate_test(plan)),
    )
    log.flush()
    spent = current_ledger().as_dict()
    metrics = {**result.metrics, "spent": spent}
    folder.write_json(folder.evaluation(PHASE), metrics)
    write_failures(log.attempts(phase=PHASE, outcome="success"), folder.failures)
    record["warnings"] = list(warnings_of_calls(result))
    record["notes"] = list(notes_on_calls(None))
    record["spent"] = spent
    if result.spent is None:  # a manifest without durations marks a run that is not complete
        record["seconds"] = {"testing": time.perf_counter() - clock}
    folder.write_json(folder.manifest, record)
    write_run_page(folder)
    return replace(result, metrics=metrics)
