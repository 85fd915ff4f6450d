"""The attempts of one part of a run, and how many of them were planned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import Summary, by_prompt, summarise_prompts
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.infra.jsonio import parse_json
from astra_rl.runs.attempt_log import AttemptLog, replacing_log
from astra_rl.runs.folder import RunFolder

IN_THE_RUN = ("before", "training", "after")
"""Parts that `attempts.jsonl` holds; every later occasion has a file of its own."""
ORDINARY_PHASE = "ordinary"
"""Phase of ``astra-rl probability``: conversations of the baseline and of the attacker."""
ORDINARY_ATTACKER = "ordinary use"
"""Name of the attacker in the conversations of that phase that the baseline leads."""


class Recorded:
    """The attempts of one part of a run, to read; use it as a context manager.

    Args:
        folder: The run.
        phase: ``"before"``, ``"training"``, ``"after"``, or the name of a later occasion.

    Attributes:
        planned: How many attempts were to be made; None if that was not noted.

    Raises:
        ConfigurationError: There is no such part, or the record cannot be read.
    """

    def __init__(self, folder: RunFolder, phase: str) -> None:
        own = folder.attempts_of(phase)
        later = phase not in IN_THE_RUN and own.is_file()
        self._log = AttemptLog(own if later else folder.attempts)
        self._where: dict[str, Any] = {} if later else {"phase": phase}
        self.planned = planned_attempts(folder).get(phase)
        if self.planned is None and next(self.rows(limit=1), None) is None:
            phases = sorted({row.phase for row in self._log.rows()} | set(_occasions(folder)))
            self._log.close()
            raise ConfigurationError(
                f"{folder.path} has no attempts of the phase {phase!r}; it has {', '.join(phases)}."
            )

    def rows(self, **options: Any) -> Iterator[AttemptRow]:
        """Yield what statistics need of the attempts; see `AttemptLog.rows`."""
        return self._log.rows(**self._where, **options)

    def attempts(self, **options: Any) -> Iterator[Attempt]:
        """Yield the attempts; see `AttemptLog.attempts`."""
        return self._log.attempts(**self._where, **options)

    def summary(self) -> Summary:
        """Sum them up; those that were planned and never made are among the errors."""
        return summarise_prompts(by_prompt(self.rows(order="prompt")), planned=self.planned)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.close()


@contextlib.contextmanager
def recording(folder: RunFolder, part: str, planned: int) -> Iterator[AttemptLog]:
    """Yield the log of a part of a run that is played after it, and note how many are planned.

    What an earlier one recorded under this name stays until the block has ended well, and is then
    replaced. Without an earlier one, what was recorded stays whatever ends the block.
    """
    path = folder.attempts_of(part)
    if path.is_file():
        with replacing_log(path) as log:
            yield log
            plan_attempts(folder, part, planned)
    else:
        plan_attempts(folder, part, planned)
        with AttemptLog(path, write=True) as log:
            yield log


def plan_attempts(folder: RunFolder, phase: str, count: int) -> None:
    """Note how many attempts a part of a run is going to make, before it makes the first."""
    folder.write_json(folder.planned, {**planned_attempts(folder), phase: count})


def planned_attempts(folder: RunFolder) -> dict[str, int]:
    """Return how many attempts each part of a run was to make, as far as that was noted."""
    if not folder.planned.is_file():
        return {}
    try:
        known = parse_json(folder.planned.read_text(encoding="utf-8"))
        return {str(phase): int(count) for phase, count in known.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"cannot read {folder.planned}: {error}") from error


def _occasions(folder: RunFolder) -> Iterator[str]:
    for path in sorted(folder.path.glob("attempts_*.jsonl")):
        yield path.stem.removeprefix("attempts_")
