"""Sequential evaluation: play until a condition on the success rate is decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.show.gate import fail_on
from astra_rl.runs.attempt_log import AttemptLog

ResultT = TypeVar("ResultT")

LOOK_EVERY = 32
"""Number of conversations between two looks; rounded to whole prompts."""
QUANTITIES = ("asr", "asr_last_turn")


class Until:
    """A condition such as ``upper(asr)<0.05``, checked while the evaluation is running.

    The bounds are those of a confidence sequence (`confidence_sequence`), which holds at all looks
    together. The evaluation ends when the condition holds, or when the other bound shows that the
    rate is on the other side of the limit. The observations are the success rates of prompts, which
    are played in random order, all trials of a prompt one after the other.

    Args:
        expression: The condition: ``upper(...) < limit`` or ``lower(...) > limit``.

    Raises:
        ConfigurationError: It is no such condition.
    """

    def __init__(self, expression: str) -> None:
        self.condition = fail_on(expression, QUANTITIES)
        if not self.condition.proves_by_holding or self.condition.bound not in ("lower", "upper"):
            raise ConfigurationError(
                f"--until {expression!r}: it must be a bound that can be proven, for instance "
                "'upper(asr)<0.05' or 'lower(asr)>0.05'."
            )
        lower = self.condition.bound == "lower"
        self.opposite = replace(
            self.condition,
            expression=f"not {self.condition.expression}",
            bound="upper" if lower else "lower",
            comparison={"<": ">=", "<=": ">", ">": "<=", ">=": "<"}[self.condition.comparison],
        )

    def verdict(self, rows: Sequence[AttemptRow]) -> str | None:
        """Return what is decided by these attempts; None if it is not decided yet."""
        if not rows:
            return None
        summary = summarise(rows, sequential=True)
        for each in (self.condition, self.opposite):
            found = each(summary)
            if found.decided and found.fails:
                return f"{found.text}, after {len(rows)} conversations"
        return None


class StopWhenDecided:
    """Plays batches until a condition is decided.

    Args:
        until: The condition.
        rows: Attempts so far; the caller adds every attempt that is played.
        around: Wraps each batch that is played.

    Attributes:
        verdict: What was decided; None if nothing was.
    """

    def __init__(
        self,
        until: Until,
        rows: Sequence[AttemptRow],
        around: Callable[[Callable[[], Sequence[Any]]], Sequence[Any]],
    ) -> None:
        self.until, self.rows, self.around = until, rows, around
        self.verdict: str | None = None

    def __call__(self, work: Callable[[], Sequence[ResultT]]) -> Sequence[ResultT]:
        """Return the results of a batch; none if the condition is decided."""
        self.verdict = self.verdict or self.until.verdict(self.rows)
        return [] if self.verdict else self.around(work)


def batch_size(trials: int) -> int:
    """Return the number of conversations between two looks, a multiple of `trials`."""
    return max(1, LOOK_EVERY // trials) * trials


def earlier_attempts(
    path: Path, order: Sequence[tuple[str, int]], *, run: str, attacker: str, target: str, size: int
) -> list[Attempt]:
    """Return the attempts of an earlier session that this one continues, in whole batches.

    Args:
        path: Log of the phase; it may be missing.
        order: Prompt id and trial of every planned attempt, in order.
        run: Name of the run in the records, a checksum of the configuration.
        attacker: Name of the attacker.
        target: Name of the target.
        size: Size of a batch.

    Returns:
        As many as agree with the plan; none if the first one does not.
    """
    if not path.is_file():
        return []
    found: list[Attempt] = []
    with AttemptLog(path) as log:
        for attempt, key in zip(log.attempts(), order, strict=False):
            names = (attempt.run, attempt.attacker, attempt.target)
            if names != (run, attacker, target) or (attempt.prompt_id, attempt.trial) != key:
                break
            found.append(attempt)
    whole = len(found) if len(found) == len(order) else len(found) // size * size
    return found[:whole]
