"""One thing to test a target with, and how the records of a file become such rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from astra_rl.errors import ConfigurationError, did_you_mean

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

MAX_CHARS = 100_000
"""Longest text of a row, unless another limit is asked for; about 25,000 tokens."""

MAX_PROBLEMS = 20
"""Bad rows that an error names; of those beyond it says how many there are."""

FIELDS = ("prompt", "id", "category", "system", "brief", "split")
"""What a row is read from, besides ``facts`` (a mapping) and ``facts.NAME``."""

_TEXTS = ("prompt", "system", "brief")
_SPLIT_NAMES: Mapping[str, Split] = {
    **{split: split for split in SPLITS},
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
}


@dataclass(frozen=True)
class Row:
    """One thing to test a target with.

    Attributes:
        id: Names the row; no other row of its scenario has it.
        prompt: First words of a conversation, or what the attacker is to bring about. May be empty
            if there is a system message or a brief.
        category: Kind of row, for instance of harm or of topic.
        system: System message of the target; None takes the scenario's.
        brief: What the attacker is told; None takes the scenario's.
        facts: What only moderators may know, for instance ``{"secret": ...}``.
        split: Where the row belongs, if its source says so.
    """

    id: str
    prompt: str = ""
    category: str | None = None
    system: str | None = None
    brief: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    split: Split | None = None

    @property
    def compared(self) -> str:
        """The text by which near-duplicates are found: the first one that there is."""
        return self.prompt or self.system or self.brief or ""

    @property
    def content(self) -> tuple[Any, ...]:
        """All that makes a row say the same as another, whatever the two are called."""
        return self.prompt, self.system, self.brief, tuple(sorted(self.facts.items()))


@dataclass(frozen=True)
class Record:
    """What a file says in one place, before it is checked.

    Attributes:
        number: Which line, row or item it is, counted from 1.
        values: By name of the column.
    """

    number: int
    values: Mapping[str, Any]


class RowErrors:
    """What is wrong with a file, collected so that its owner is told all at once.

    Args:
        source: Name of the file.
        unit: What its places are called, for instance ``"line"``.
    """

    def __init__(self, source: str, unit: str) -> None:
        self.source, self.unit = source, unit
        self._found: list[tuple[int, str]] = []

    def add(self, number: int, reason: str) -> None:
        """Note what is wrong in a place."""
        self._found.append((number, reason))

    def check(self) -> None:
        """Raise what was collected, if there is anything.

        Raises:
            ConfigurationError: Naming each place, up to `MAX_PROBLEMS`.
        """
        if not self._found:
            return
        found, more = sorted(self._found), len(self._found) - MAX_PROBLEMS
        lines = [f"{self.unit} {number}: {reason}" for number, reason in found[:MAX_PROBLEMS]]
        if more > 0:
            lines.append(f"and {more} more")
        rows = "1 bad row" if len(found) == 1 else f"{len(found)} bad rows"
        raise ConfigurationError(
            "\n  ".join([f"{self.source}: {rows}, so nothing was loaded.", *lines])
        )


def rows_of(
    records: Sequence[Record],
    problems: RowErrors,
    *,
    stem: str,
    columns: Mapping[str, str] | None = None,
    max_chars: int = MAX_CHARS,
) -> tuple[list[Row], list[tuple[int, int]]]:
    """Turn the records of one source into rows.

    Args:
        records: In their order.
        problems: What reading the source found so far; what is wrong with records is added.
        stem: Begins the id of a row that brings none; the number of its record ends it.
        columns: The column of each field that is not called like it, for instance
            ``{"prompt": "question", "facts.secret": "password"}``.
        max_chars: Longest text that is accepted.

    Returns:
        The rows without those that repeat an earlier one, and the numbers of each such record and
        of the one it repeats.

    Raises:
        ConfigurationError: A column is missing or a record is bad; all bad ones are named.
    """
    columns = columns or {}
    _check_columns(records, problems, columns)
    rows: list[Row] = []
    repeated: list[tuple[int, int]] = []
    seen: dict[tuple[Any, ...], int] = {}
    ids: dict[str, int] = {}
    for record in records:
        try:
            row = _row(record, stem, columns, max_chars)
        except _Bad as bad:
            problems.add(record.number, str(bad))
            continue
        first = seen.setdefault(row.content, record.number)
        if first != record.number:
            repeated.append((record.number, first))
        elif row.id in ids:
            problems.add(
                record.number, f"id {_shown(row.id)} is that of {problems.unit} {ids[row.id]}"
            )
        else:
            ids[row.id] = record.number
            rows.append(row)
    problems.check()
    if not rows:
        raise ConfigurationError(f"{problems.source} holds no prompt.")
    return rows, repeated


class _Bad(Exception):
    """Why a record cannot be a row."""


def _row(record: Record, stem: str, columns: Mapping[str, str], max_chars: int) -> Row:
    values = record.values
    fields = {name: _value(values, name, columns, max_chars) for name in FIELDS}
    if not any(fields[name] for name in _TEXTS):
        column = columns.get("prompt", "prompt")
        has = ", ".join(map(_shown, values)) or "nothing"
        hint = "it is empty" if column in values else f"this row has {has}"
        raise _Bad(f"no text in {column!r}; {hint}")
    split = fields.pop("split")
    if split is not None and split not in _SPLIT_NAMES:
        raise _Bad(f"split {_shown(split)} is none of {', '.join(SPLITS)}")
    return Row(
        id=fields.pop("id") or f"{stem}-{record.number}",
        prompt=fields.pop("prompt") or "",
        facts=_facts(values, columns, max_chars),
        split=None if split is None else _SPLIT_NAMES[split],
        **fields,
    )


def _facts(values: Mapping[str, Any], columns: Mapping[str, str], max_chars: int) -> dict[str, str]:
    given = values.get(columns.get("facts", "facts"))
    if given is not None and not isinstance(given, Mapping):
        raise _Bad(f"facts is {_kind(given)}; it must hold names and texts")
    nested = {f"facts.{name}": value for name, value in (given or {}).items()}
    flat = {name: value for name, value in values.items() if name.startswith("facts.")}
    mapped = {
        name: values.get(column) for name, column in columns.items() if name.startswith("facts.")
    }
    every = {**nested, **flat, **mapped}
    found = {name: _value(every, name, {}, max_chars) for name in every}
    return {name.removeprefix("facts."): text for name, text in found.items() if text is not None}


def _value(
    values: Mapping[str, Any], name: str, columns: Mapping[str, str], max_chars: int
) -> str | None:
    """Return the text of a field; None if there is nothing but space in it."""
    column = columns.get(name, name)
    value = values.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        if name in _TEXTS or isinstance(value, bool) or not isinstance(value, int | float):
            raise _Bad(f"{column} is {_kind(value)}; it must be a text")
        value = str(value)
    if not value.strip():
        return None
    if len(value) > max_chars:
        raise _Bad(
            f"{column} has {len(value):,} characters; at most {max_chars:,} are accepted. "
            "Raise max_chars if that is meant"
        )
    if "\0" in value:
        raise _Bad(f"{column} holds a NUL character at position {value.index(chr(0)) + 1}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Bad(
            f"{column} holds half a surrogate pair at position {error.start + 1}, which no model "
            "can read"
        ) from error
    return value


def _check_columns(
    records: Iterable[Record], problems: RowErrors, columns: Mapping[str, str]
) -> None:
    """Say once, not for every row, that a column does not exist."""
    for name in columns:
        if name not in (*FIELDS, "facts") and not name.startswith("facts."):
            raise ConfigurationError(
                f"columns: a row has no {name!r}.{did_you_mean(name, FIELDS)} "
                f"It has: {', '.join(FIELDS)}, facts.NAME."
            )
    known = list(dict.fromkeys(column for record in records for column in record.values))
    if not known:  # no records, or each is bad in a way of its own
        return
    missing = [column for column in columns.values() if column not in known]
    if not missing and not any(columns.get(name, name) in known for name in _TEXTS):
        missing = [columns.get("prompt", "prompt")]
    if missing:
        raise ConfigurationError(
            f"{problems.source} has no column {missing[0]!r}."
            f"{did_you_mean(missing[0], known)} It has: {', '.join(map(_shown, known[:30]))}. "
            "If the prompts have another name, give it: columns={'prompt': NAME}."
        )


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else "no text")


def _shown(text: str, most: int = 60) -> str:
    """Return what a stranger's file says so that it fits in a message of one line."""
    return ascii(text if len(text) <= most else text[:most] + "...")
