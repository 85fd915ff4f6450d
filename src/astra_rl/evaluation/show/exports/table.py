"""All turns as a table: CSV for spreadsheets, Parquet and pandas for data frames."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astra_rl.errors import require
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.evaluation.records.turn import Turn
from astra_rl.evaluation.show.escaping import csv_cell, shorten
from astra_rl.infra.jsonio import atomic_binary_file, atomic_file
from astra_rl.infra.redaction import redact

if TYPE_CHECKING:
    import pandas

CELL_LIMIT = 32_000
"""Maximum characters of a cell; spreadsheets allow 32,767."""

TYPES = {
    "id": str, "run": str, "phase": str, "attacker": str, "target": str, "category": str,
    "prompt_id": str, "trial": int, "outcome": str, "judge": str, "threshold": float,
    "first_failing_turn": int, "turn": int, "score": float, "missing": str,
    "attack_logprob": float, "attack_tokens": int, "reward": float, "prompt": str, "attack": str,
    "response": str, "error": str,
}  # fmt: skip
"""Types of the columns; every cell may be missing."""
COLUMNS = tuple(TYPES)
CHARACTERS_IN_MEMORY = 500_000
"""Characters of texts from which a group of rows of a Parquet file is written."""


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


def write_parquet(attempts: Iterable[Attempt] | AttemptSource, path: str | Path) -> int:
    """Write the rows of `write_csv` with typed columns; return the number of rows.

    A table is no spreadsheet: cells that begin like a formula are not escaped, and long ones are
    whole. Attempts of a log are read one by one.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    parquet = require("pyarrow.parquet", extra="data")
    rows = (row for attempt in source_of(attempts).attempts() for row in _rows(attempt))
    count = 0
    schema = _schema()
    with atomic_binary_file(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for group in _groups(rows):
            writer.write_table(_arrow_table(group))
            count += len(group)
    return count


def _groups(rows: Iterable[list[object]]) -> Iterator[list[list[object]]]:
    group: list[list[object]] = []
    characters = 0
    for row in rows:
        group.append(row)
        characters += sum(len(cell) for cell in row if isinstance(cell, str))
        if characters >= CHARACTERS_IN_MEMORY:
            yield group
            group, characters = [], 0
    if group:
        yield group


def data_frame(attempts: Iterable[Attempt] | AttemptSource) -> pandas.DataFrame:
    """Return the rows of `write_parquet` as a data frame.

    Integers have the type ``Int64``, which has missing values; missing numbers are NaN.

    Raises:
        MissingDependencyError: pyarrow or pandas is not installed.
    """
    require("pandas", extra="data")
    rows = [row for attempt in source_of(attempts).attempts() for row in _rows(attempt)]
    table = _arrow_table(rows)
    integers = {name: "Int64" for name, kind in TYPES.items() if kind is int}
    frame: pandas.DataFrame = table.to_pandas(integer_object_nulls=True).astype(integers)
    return frame


def _schema() -> Any:
    arrow = require("pyarrow", extra="data")
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    return arrow.schema([(name, kinds[kind]) for name, kind in TYPES.items()])


def _arrow_table(rows: Sequence[Sequence[object]]) -> Any:
    arrow = require("pyarrow", extra="data")
    columns = zip(*rows, strict=True) if rows else ([] for _ in TYPES)
    known = [[_redacted(cell) for cell in column] for column in columns]
    return arrow.table(dict(zip(TYPES, known, strict=True)), schema=_schema())


def _redacted(value: object) -> object:
    return redact(value) if isinstance(value, str) else value


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
