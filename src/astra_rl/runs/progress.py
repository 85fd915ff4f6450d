"""What a run has done so far, read from its folder while it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.infra.jsonio import parse_json
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder, read_own
from astra_rl.runs.resume import is_complete, is_row_of_metrics
from astra_rl.targets.accounts import LedgerFile, describe_spent

CURVES = {
    "reward": "reward",
    "asr": "success rate",
    "effective_attacks": "effective kinds",
    "tokens_per_second": "tokens/s",
}
"""Metrics that are shown as curves, and how they are called."""


@dataclass(frozen=True)
class Progress:
    """What a run has done so far.

    Attributes:
        curves: Values by step of each metric of `CURVES`; steps without a value are left out.
        step: Number of completed training steps.
        attempts: Number of recorded conversations.
        successes: The latest conversations in which the target failed, the newest first.
        spent: Calls of endpoints and their cost as a phrase; empty if there were none.
        is_complete: Whether the run has ended.
    """

    curves: dict[str, list[float]]
    step: int
    attempts: int
    successes: Sequence[Attempt]
    spent: str
    is_complete: bool


def read_progress(folder: RunFolder, most: int = 8) -> Progress:
    """Read the progress of a run; its writer is not blocked.

    Args:
        folder: The run.
        most: Number of latest successes.
    """
    rows = metrics_of_steps(folder)
    for row in rows:
        if row.get("tokens") and row.get("step_time"):
            row["tokens_per_second"] = row["tokens"] / row["step_time"]
    attempts, successes = 0, list[Attempt]()
    if folder.attempts.is_file():
        with AttemptLog(folder.attempts) as log:
            attempts, count = len(log), log.count(outcome="success")
            successes = [*log.attempts(outcome="success", offset=max(0, count - most))]
    ledger = folder.path / "ledger.json"
    return Progress(
        curves={name: [row[name] for row in rows if name in row] for name in CURVES},
        step=max((int(row["step"]) for row in rows), default=0),
        attempts=attempts,
        successes=successes[::-1],
        spent=describe_spent(read_own(ledger, LedgerFile)) if ledger.is_file() else "",
        is_complete=is_complete(folder),
    )


def metrics_of_steps(folder: RunFolder) -> list[dict[str, float]]:
    """Return the numbers of each step; a line that is being written is left out."""
    if not folder.metrics.is_file():
        return []
    rows = []
    for line in folder.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            row = parse_json(line)
            if is_row_of_metrics(row):
                rows.append({name: float(each) for name, each in row.items() if each is not None})
    return rows
