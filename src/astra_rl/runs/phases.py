"""Phases of a run: play one, and read the attempts of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from astra_rl.config.experiment import EVALUATED_TOGETHER, ordinary_use
from astra_rl.config.schema import RunConfig
from astra_rl.core.environment import Environment
from astra_rl.core.moderator import Moderator
from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.evaluation.judges.quality import judge_quality
from astra_rl.evaluation.measures.summary import Summary, by_prompt, summarise_prompts
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.from_graphs import LogProbs
from astra_rl.evaluation.records.turn import Count
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.methods.ast_evaluator import ASTEvaluator, EvaluationResult
from astra_rl.runs.attempt_index import lock
from astra_rl.runs.attempt_log import AttemptLog, replacing_log
from astra_rl.runs.folder import RunFolder, open_run_folder, read_own
from astra_rl.runs.provenance import labels_of
from astra_rl.runs.spending import WithinBudget, checking_budget
from astra_rl.runs.until import StopWhenDecided, Until

IN_THE_RUN = ("before", "training", "after")
"""Phases in `attempts.jsonl`; each phase that a later command plays has a file of its own."""
PATIENCE_OF_PLANS = 60.0
"""Seconds to wait for other processes that write the planned numbers, each for an instant."""
ORDINARY_PHASE = "ordinary"
"""Phase of ``astra-rl probability``: conversations of the baseline and of the attacker."""
ORDINARY_ATTACKER = "ordinary use"
"""Name of the attacker in the conversations of that phase that the baseline leads."""


@dataclass(frozen=True)
class PhaseResult(EvaluationResult):
    """Result of a phase.

    Attributes:
        spent: The budget limit that ended the phase early; None if none did.
    """

    spent: BudgetSpentError | None = None


class PhaseRun:
    """Plays, judges, records and budgets one phase of a run.

    Args:
        config: Configuration of the run.
        phase: Name of the phase in the records.
        problem: The models.
        judge: Moderator that scores the turns.
        log: Log that the attempts are appended to.
        run: Name of the run in the records; None derives it from the configuration.
        categories: Category of each opening, by `Opening.id`.
        likelihoods: See `ASTEvaluator`; the baseline of ordinary use is always measured.
        allow_partial: Whether a spent budget ends the phase with the attempts made so far. If
            False, it raises.
    """

    def __init__(
        self,
        config: RunConfig,
        phase: str,
        problem: HFASTProblem,
        judge: Moderator[Any, Any],
        log: AttemptLog,
        *,
        run: str | None = None,
        categories: Mapping[str, str] | None = None,
        likelihoods: Mapping[str, LogProbs] | None = None,
        allow_partial: bool = True,
    ) -> None:
        self.config, self.phase, self.judge, self.log = config, phase, judge, log
        self.run, self.categories = run, categories
        self.allow_partial = allow_partial
        ordinary = ordinary_use(config, problem)
        self.likelihoods = {"baseline": ordinary.get_baseline_logprobs, **(likelihoods or {})}

    def play(
        self,
        environment: Environment[str, str],
        seeds: Sequence[int | str],
        planned: int,
        *,
        attacker: str | None = None,
        prompt_ids: Mapping[int | str, str] | None = None,
        until: Until | None = None,
        already: Sequence[Attempt] = (),
        batch: int = EVALUATED_TOGETHER,
    ) -> PhaseResult:
        """Play the conversations, append them to the log and summarise them.

        Args:
            environment: Plays the conversations.
            seeds: What they open with, see `ASTEvaluator`.
            planned: Number of conversations.
            attacker: Name of the attacker in the records; None names the attacker of the run.
            prompt_ids: See `ASTEvaluator`.
            until: Ends the phase when this is decided; None plays all conversations.
            already: Attempts of an earlier session, which are in the log.
            batch: Number of conversations that are played together.

        Raises:
            BudgetSpentError: No conversation could be completed, or `allow_partial` is False.
        """
        within = WithinBudget()
        around: Any = within if self.allow_partial else checking_budget
        rows = [attempt.row for attempt in already]
        stop = None if until is None else StopWhenDecided(until, rows, around)

        def record(attempt: Attempt) -> None:
            self.log.append(attempt)
            if stop is not None:
                rows.append(attempt.row)

        evaluator = ASTEvaluator(
            environment,
            seeds,
            threshold=self.config.evaluation.threshold,
            judge=self.judge,
            batch_size=batch,
            record=record,
            labels=labels_of(
                self.config,
                self.phase,
                attacker=attacker,
                run=self.run,
                categories=self.categories,
            ),
            likelihoods=self.likelihoods,
            prompt_ids=prompt_ids,
            around_batch=around if stop is None else stop,
            already=already,
            sequential=until is not None,
        )
        found = evaluator.run(planned - len(already))
        if within.spent is not None and not found.attempts:
            raise within.spent
        settings = self.config.evaluation
        quality = judge_quality(self.judge, settings.calibrations, settings.threshold)
        metrics = {
            **found.metrics,
            "judge_quality": quality and quality.as_dict(),
            "until": until and until.condition.expression,
            "decided": until and until.verdict(rows),
            "asr_corrected": quality and quality.correct(found.summary).as_dict(),
        }
        return PhaseResult(found.attempts, found.summary, metrics, within.spent)


class Recorded:
    """Attempts of one phase of a run, for reading; use it as a context manager.

    Args:
        folder: Folder of the run.
        phase: ``"before"``, ``"training"``, ``"after"``, or the name of a phase that a later
            command played.

    Attributes:
        planned: Number of planned attempts; None if it is not known.
        sequential: Whether the phase ended when its result was clear, see `Rate`.

    Raises:
        ConfigurationError: The run has no such phase, or its log cannot be read.
    """

    def __init__(self, folder: RunFolder, phase: str) -> None:
        logger.info("reading the phase %s of %s", phase, folder.path)
        own = folder.attempts_of(phase)
        later = phase not in IN_THE_RUN and own.is_file()
        self._log = AttemptLog(own if later else folder.attempts)
        self._where: dict[str, Any] = {} if later else {"phase": phase}
        self.planned = planned_attempts(folder).get(phase)
        self.sequential = is_sequential(folder, phase)
        if self.planned is None and next(self.rows(limit=1), None) is None:
            phases = sorted({row.phase for row in self._log.rows()} | set(_later_phases(folder)))
            self._log.close()
            raise ConfigurationError(
                f"{folder.path} has no attempts of the phase {phase!r}; it has {', '.join(phases)}."
            )

    def rows(self, **options: Any) -> Iterator[AttemptRow]:
        """Yield the attempts without their texts; see `AttemptLog.rows`."""
        return self._log.rows(**self._where, **options)

    def attempts(self, **options: Any) -> Iterator[Attempt]:
        """Yield the attempts; see `AttemptLog.attempts`."""
        return self._log.attempts(**self._where, **options)

    def summary(self) -> Summary:
        """Summarise the attempts; planned attempts that were never made count as errors."""
        return summarise_prompts(
            by_prompt(self.rows(order="prompt")), planned=self.planned, sequential=self.sequential
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.close()


def is_sequential(folder: RunFolder, phase: str) -> bool:
    """Whether an evaluation was played with ``--until``."""
    path = folder.evaluation(phase)
    return path.is_file() and read_own(path, dict).get("until") is not None


def summary_of_phase(run: str | Path, phase: str) -> Summary:
    """Summarise one phase of the run in a folder.

    Raises:
        ConfigurationError: The folder is no run, or has no such phase.
    """
    with Recorded(open_run_folder(run), phase) as recorded:
        return recorded.summary()


@contextlib.contextmanager
def recording(folder: RunFolder, phase: str, planned: int) -> Iterator[AttemptLog]:
    """Yield a new log for a phase that is played after the run, and store the planned number.

    An earlier log of the same phase is replaced when the block ends without an error. If there is
    none, the new log is kept even if the block raises.
    """
    path = folder.attempts_of(phase)
    if path.is_file():
        with replacing_log(path) as log:
            yield log
            plan_attempts(folder, phase, planned)
    else:
        plan_attempts(folder, phase, planned)
        with AttemptLog(path, write=True) as log:
            yield log


def plan_attempts(folder: RunFolder, phase: str, count: int) -> None:
    """Store the number of planned attempts of a phase, before the first one is made.

    Several processes may do so for one run at the same time.
    """
    with storing(folder.planned), lock(folder.planned, patience=PATIENCE_OF_PLANS):
        folder.write_json(folder.planned, {**planned_attempts(folder), phase: count})


def planned_attempts(folder: RunFolder) -> dict[str, int]:
    """Return the number of planned attempts by phase, where it is known.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    if not folder.planned.is_file():
        return {}
    try:
        known = parse_json(folder.planned.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, Count]).validate_python(known)
    except (OSError, ValueError) as error:
        reason = "its counts are not integers" if isinstance(error, ValidationError) else error
        raise ConfigurationError(
            f"cannot read {folder.planned}: {reason}. It is damaged; restore it, or remove it."
        ) from None


def _later_phases(folder: RunFolder) -> Iterator[str]:
    for path in sorted(folder.path.glob("attempts_*.jsonl")):
        yield path.stem.removeprefix("attempts_")
