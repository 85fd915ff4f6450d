"""Recorded phases of a run, which need no model: read the attempts of one, plan them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

from pydantic import TypeAdapter, ValidationError

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgeQuality
from astra_rl.evaluation.measures.summary import Summary, by_prompt, summarise_prompts
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.base import Count
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.runs.attempt_index import lock
from astra_rl.runs.attempt_log import AttemptLog, NumberedRow, replacing_log
from astra_rl.runs.file_types import EvaluationFile
from astra_rl.runs.folder import RunFolder, file_stem, open_run_folder, read_own

IN_THE_RUN = ("before", "training", "after")
"""Phases in `attempts.jsonl`; each phase that a later command plays has a file of its own."""
PATIENCE_OF_PLANS = 60.0
"""Seconds to wait for other processes that write the planned numbers, each for an instant."""
ORDINARY_PHASE = "ordinary"
"""Phase of ``astra-rl probability``: conversations of the baseline and of the attacker."""
ORDINARY_ATTACKER = "ordinary use"
"""Name of the attacker in the conversations of that phase that the baseline leads."""


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

    def numbered(self, **options: Any) -> Iterator[NumberedRow]:
        """Yield the attempts without their texts, numbered; see `AttemptLog.numbered`."""
        return self._log.numbered(**self._where, **options)

    def distinct(self, *fields: str) -> set[tuple[Any, ...]]:
        """Return the different values of fields; see `AttemptLog.distinct`."""
        return self._log.distinct(*fields, **self._where)

    def get(self, key: str) -> Attempt:
        """Read the attempt with this id; see `AttemptLog.get`."""
        return self._log.get(key)

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

    def __exit__(self, *raised: object) -> None:
        self._log.close()


class StoredAttempts(Sequence[Attempt]):
    """Attempts of a phase as a sequence, read from the log whenever they are used.

    Args:
        folder: Folder of the run.
        phase: See `Recorded`.
    """

    def __init__(self, folder: RunFolder, phase: str) -> None:
        self._folder, self._phase = folder, phase

    def __iter__(self) -> Iterator[Attempt]:
        with Recorded(self._folder, self._phase) as recorded:
            yield from recorded.attempts()

    def __len__(self) -> int:
        with Recorded(self._folder, self._phase) as recorded:
            return sum(1 for _ in recorded.rows())

    @overload
    def __getitem__(self, index: int) -> Attempt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Attempt]: ...
    def __getitem__(self, index: int | slice) -> Attempt | list[Attempt]:
        if isinstance(index, slice):
            return list(self)[index]
        at = range(len(self))[index]
        with Recorded(self._folder, self._phase) as recorded:
            return next(recorded.attempts(offset=at, limit=1))


def is_sequential(folder: RunFolder, phase: str) -> bool:
    """Whether the number of attempts of a phase depends on their outcomes.

    So it is if the evaluation was played with ``--until``, and if a later command scored or sent
    the attempts of such an evaluation again.
    """
    if file_stem(phase) in _stopped_phases(folder):
        return True
    path = folder.evaluation(phase)
    return path.is_file() and read_own(path, EvaluationFile).get("until") is not None


def quality_of_phase(folder: RunFolder, phase: str) -> JudgeQuality | None:
    """Return the measured errors of the judge of a phase; None if it was not calibrated."""
    path = folder.evaluation(phase)
    if not path.is_file():
        return None
    return JudgeQuality.from_dict(read_own(path, EvaluationFile).get("judge_quality"))


def summary_of_phase(run: str | Path, phase: str) -> Summary:
    """Summarise one phase of the run in a folder.

    Raises:
        ConfigurationError: The folder is no run, or has no such phase.
    """
    with Recorded(open_run_folder(run), phase) as recorded:
        return recorded.summary()


@contextlib.contextmanager
def recording(
    folder: RunFolder, phase: str, planned: int, *, sequential: bool = False
) -> Iterator[AttemptLog]:
    """Yield a new log for a phase that is played after the run, and store the planned number.

    An earlier log of the same phase is replaced when the block ends without an error. If there is
    none, the new log is kept even if the block raises.
    """
    path = folder.attempts_of(phase)
    if path.is_file():
        with replacing_log(path) as log:
            yield log
            plan_attempts(folder, phase, planned, sequential=sequential)
    else:
        plan_attempts(folder, phase, planned, sequential=sequential)
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
    for key in [row.id for row in log.rows(phase=phase)]:
        attempt = log.get(key)
        if attempt.turns:
            nothing = {"turns": (), "outcome": Outcome.ERROR, "error": f"not played: {reason}"}
            log.append(attempt.model_copy(update=nothing))


def plan_attempts(folder: RunFolder, phase: str, count: int, *, sequential: bool = False) -> None:
    """Store the number of planned attempts of a phase, before the first one is made.

    Several processes may do so for one run at the same time.

    Args:
        folder: Folder of the run.
        phase: The phase.
        count: The number.
        sequential: Whether these are the attempts of an evaluation that stopped early, see
            `is_sequential`.
    """
    with storing(folder.planned), lock(folder.planned, patience=PATIENCE_OF_PLANS):
        folder.write_json(folder.planned, {**planned_attempts(folder), phase: count})
        known, name = _stopped_phases(folder), file_stem(phase)
        if sequential != (name in known):
            folder.write_json(folder.stopped, sorted(known ^ {name}))


def _stopped_phases(folder: RunFolder) -> set[str]:
    if not folder.stopped.is_file():
        return set()
    return set(read_own(folder.stopped, list[str]))


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
