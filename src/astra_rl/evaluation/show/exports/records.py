"""Successful attacks as JSONL: one complete record per line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.infra.jsonio import atomic_file


def write_failures(attempts: Iterable[Attempt] | AttemptSource, path: str | Path) -> int:
    """Write the attempts in which the attack succeeded; return their number.

    Times are omitted, so that the same run gives the same file. `Attempt.from_json` reads a line.
    """
    count = 0
    with atomic_file(path) as file:
        for attempt in source_of(attempts).attempts():
            if attempt.outcome is Outcome.SUCCESS:
                timeless = attempt.model_copy(update={"started": None, "seconds": None})
                file.write(timeless.to_json() + "\n")
                count += 1
    return count
