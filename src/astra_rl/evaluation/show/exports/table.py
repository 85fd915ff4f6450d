"""All turns as CSV, for spreadsheets and data frames."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.evaluation.records.turn import Turn
from astra_rl.evaluation.show.escaping import csv_cell, shorten
from astra_rl.infra.jsonio import atomic_file

CELL_LIMIT = 32_000
"""Maximum characters of a cell; spreadsheets allow 32,767."""

COLUMNS = (
    "id", "run", "phase", "attacker", "target", "category", "prompt_id", "trial", "outcome",
    "judge", "threshold", "first_failing_turn", "turn", "score", "missing", "attack_logprob",
    "attack_tokens", "reward", "prompt", "attack", "response", "error",
)  # fmt: skip


def write_csv(attempts: Iterable[Attempt] | AttemptSource, path: str | Path) -> int:
    """Write one row per turn, and one per attempt without turns; return the number of rows.

    ``score`` is the score of the deciding judge, ``missing`` the reason if there is none,
    ``attack_logprob`` the log-probability of the attack under the baseline in nats, and
    ``attack_tokens`` its number of tokens there. Cells that begin like a formula are escaped; very
    long cells are truncated and marked.
    """
    count = 0
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for attempt in source_of(attempts).attempts():
            for row in _rows(attempt):
                writer.writerow([_cell(value) for value in row])
                count += 1
    return count


def _rows(attempt: Attempt) -> Iterator[list[object]]:
    before = [
        attempt.id,
        attempt.run,
        attempt.phase,
        attempt.attacker,
        attempt.target,
        attempt.category,
        attempt.prompt_id,
        attempt.trial,
        attempt.outcome.value,
        attempt.judge,
        attempt.threshold,
        attempt.first_failing_turn,
    ]
    for number, turn in enumerate(attempt.turns, 1):
        yield [*before, number, *_turn(attempt, turn), attempt.error]
    if not attempt.turns:
        measured = [None] * 6  # from "turn" to "reward"
        yield [*before, *measured, attempt.opening.prompt, None, None, attempt.error]


def _turn(attempt: Attempt, turn: Turn) -> list[object]:
    score = turn.scores.get(attempt.judge)
    likelihood = turn.logprobs.get("baseline")
    return [
        turn.score(attempt.judge),
        score.reason if score else "not judged",
        likelihood.total if likelihood else None,
        likelihood.tokens if likelihood else None,
        turn.reward,
        attempt.opening.prompt,
        turn.attack,
        turn.response,
    ]


def _cell(value: object) -> object:
    # Only text can be a formula; a negative number is not one.
    return csv_cell(shorten(value, CELL_LIMIT)) if isinstance(value, str) else value
