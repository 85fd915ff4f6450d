"""Phases of a run: play one, and read the attempts of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from astra_rl.config.experiment import EVALUATED_TOGETHER, ordinary_use
from astra_rl.config.schema import RunConfig
from astra_rl.core.environment import Environment
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed, repetitions
from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.evaluation.judges.quality import judge_quality
from astra_rl.evaluation.measures.summary import Summary, by_prompt, summarise_prompts
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.from_graphs import LogProbs
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.records.turn import Count, Opening
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.methods.ast_evaluator import ASTEvaluator, EvaluationResult
from astra_rl.runs.attempt_index import lock
from astra_rl.runs.attempt_log import AttemptLog, replacing_log
from astra_rl.runs.folder import RunFolder, open_run_folder, read_own
from astra_rl.runs.provenance import labels_of
from astra_rl.runs.spending import WithinBudget, batches_within_budget, checking_budget
from astra_rl.runs.until import StopWhenDecided, Until
from astra_rl.targets.ledger import current_ledger

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
        problem: The models. Likelihoods of attacks are measured if it has a baseline model.
        judge: Moderator that scores the turns.
        log: Log that the attempts are appended to.
        run: Name of the run in the records; None derives it from the configuration.
        categories: Category of each opening, by `Opening.id`.
        likelihoods: See `ASTEvaluator`; beside the baseline of ordinary use.
        allow_partial: Whether a spent budget ends the phase with the attempts made so far. If
            False, it raises.
    """

    def __init__(
        self,
        config: RunConfig,
        phase: str,
        problem: Problem[str, str],
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
        self.likelihoods = dict(likelihoods or {})
        if isinstance(problem, HFASTProblem):
            ordinary = ordinary_use(config, problem)
            self.likelihoods.setdefault("baseline", ordinary.get_baseline_logprobs)

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
        batch: int | None = None,
        needs: Mapping[str, float] | None = None,
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
            batch: Number of conversations that are played together; None uses the default.
            needs: What the calls need at most, by limit of the budget, see `needed`; None is
                unknown. If the budget could end the phase, conversations are played in random
                order, and in batches that shrink.

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

        # A condition to decide has an order of its own, and batches of whole prompts.
        # What a budget cannot end is played as without one, so that it is equal to the last bit.
        can_end = not (until or current_ledger().affords(needs)) and self.allow_partial
        order = played_order(seeds, planned, self.config.seed) if can_end else seeds
        kind = _BudgetedEvaluator if can_end else ASTEvaluator
        evaluator = kind(
            environment,
            order,
            threshold=self.config.evaluation.threshold,
            judge=self.judge,
            batch_size=batch or EVALUATED_TOGETHER,
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
        if can_end:  # listed as without a budget
            texts = (each for each in seeds if isinstance(each, str))
            ids = prompt_ids or {each: Opening.of(each).id for each in texts}
            place = {ids[each]: at for at, each in enumerate(seeds) if each in ids}
            found.metrics["conversations"].sort(
                key=lambda each: (each["trial"], place.get(each["prompt_id"], len(place)))
            )
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


def played_order(seeds: Sequence[int | str], planned: int, seed: int) -> Sequence[int | str]:
    """Return what an evaluation plays in random order, so that a part of it is a random sample.

    Every prompt is played once, then the second trial of each, and so on.

    Args:
        seeds: What the conversations open with, see `ASTEvaluator`.
        planned: Number of conversations; beyond the number of seeds they are further trials.
        seed: Determines the order.
    """
    played = [seeds[index % len(seeds)] for index in range(planned)]
    random = Random(derive_seed(seed, "order of an evaluation"))
    order = [(trial, random.random(), at) for at, trial in enumerate(repetitions(played))]
    return [played[at] for _, _, at in sorted(order)]


class _BudgetedEvaluator(ASTEvaluator):
    """Evaluator whose batches shrink as the budget runs out; see `batches_within_budget`."""

    def batch_sizes(self, count: int) -> Iterator[int]:
        """Yield the number of conversations of each batch."""
        return batches_within_budget(count, self.batch_size)


class Recorded:
    """Attempts of one phase of a run, for reading; use it as a context manager.

    Args:
        folder: Folder of the run.
        phase: ``"before"``, ``"training"``, ``"after"``, or the name of a phase that a later
            command played. In a folder with the results of one evaluation and no run, ``"after"``
            is that evaluation.

    Attributes:
        phase: Name of the phase.
        path: Log of its attempts.
        planned: Number of planned attempts; None if it is not known.
        sequential: Whether the phase ended when its result was clear, see `Rate`.

    Raises:
        ConfigurationError: The run has no such phase, or its log cannot be read.
    """

    def __init__(self, folder: RunFolder, phase: str) -> None:
        phase = _only_evaluation(folder) if phase == "after" else phase
        logger.info("reading the phase %s of %s", phase, folder.path)
        own = folder.attempts_of(phase)
        later = phase not in IN_THE_RUN and own.is_file()
        self.path = own if later else folder.attempts
        self._log = AttemptLog(self.path)
        self._where: dict[str, Any] = {} if later else {"phase": phase}
        self.phase = phase
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

    def shuffled(self, seed: int) -> Iterator[Attempt]:
        """Yield the attempts in random order; see `AttemptLog.shuffled`."""
        return self._log.shuffled(seed, **self._where)

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


def withdraw_attempts(log: AttemptLog, phase: str, reason: str) -> None:
    """Replace the attempts of a phase by records without turns, before it is played again.

    Those that are not played again then count as never made, not with an outdated outcome.

    Args:
        log: The log, open for writing.
        phase: The phase.
        reason: Why the recorded conversations are outdated.
    """
    log.flush()
    for attempt in list(log.attempts(phase=phase)):
        if attempt.turns:
            nothing = {"turns": (), "outcome": Outcome.ERROR, "error": f"not played: {reason}"}
            log.append(attempt.model_copy(update=nothing))


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


def _only_evaluation(folder: RunFolder) -> str:
    """Return the phase that is the result of a folder: "after", or the only one without a run."""
    later = list(_later_phases(folder))
    return later[0] if len(later) == 1 and not folder.attempts.is_file() else "after"


def _later_phases(folder: RunFolder) -> Iterator[str]:
    for path in sorted(folder.path.glob("attempts_*.jsonl")):
        yield path.stem.removeprefix("attempts_")
