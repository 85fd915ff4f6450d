"""Rows of a prompt data set, and the validation of file records as rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from astra_rl.datasets.message_lists import with_conversations
from astra_rl.datasets.records import Record, RowErrors, kind_of
from astra_rl.errors import ConfigurationError, did_you_mean

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

MAX_CHARS = 100_000
"""Default maximum length of a text, in characters; about 25,000 tokens."""

FIELDS = ("prompt", "id", "category", "system", "brief", "split")
"""Fields of a row, besides ``facts`` (a mapping) and ``facts.NAME`` (one of its entries)."""

_TEXTS = ("prompt", "system", "brief")
_SPLIT_NAMES: Mapping[str, Split] = {
    **{split: split for split in SPLITS},
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
}


@dataclass(frozen=True)
class Row:
    """One test case of a scenario.

    Attributes:
        id: Unique id within the scenario.
        prompt: Opening text of a conversation, or the attacker's goal. May be empty if there is a
            system message or a brief.
        category: Category of harm or topic.
        system: System message of the target; None uses the scenario's.
        brief: Instructions of the attacker; None uses the scenario's.
        facts: Information for moderators only, for example ``{"secret": ...}``.
        split: Split of the row; None if the source does not assign one.
    """

    id: str
    prompt: str = ""
    category: str | None = None
    system: str | None = None
    brief: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    split: Split | None = None

    @property
    def comparison_text(self) -> str:
        """Text for near-duplicate detection: prompt, else system message, else brief."""
        return self.prompt or self.system or self.brief or ""

    @property
    def content(self) -> tuple[Any, ...]:
        """All fields that make two rows duplicates, that is, without id, category and split."""
        return self.prompt, self.system, self.brief, tuple(sorted(self.facts.items()))


def parse_rows(
    records: Sequence[Record],
    errors: RowErrors,
    *,
    stem: str,
    columns: Mapping[str, str] | None = None,
    max_chars: int = MAX_CHARS,
) -> tuple[list[Row], list[tuple[int, int]]]:
    """Validate the records of one source and convert them to rows.

    Args:
        records: The records in their order.
        errors: Errors of the source so far; those of invalid records are added.
        stem: Rows without an id get the id ``STEM-NUMBER``.
        columns: Column names of fields whose column has another name, for example
            ``{"prompt": "question", "facts.secret": "password"}``.
        max_chars: Maximum length of a text, in characters.

    Returns:
        The rows without duplicates, and for each duplicate its number and that of the first record
        with the same content.

    Raises:
        ConfigurationError: A column is missing, or records are invalid; the message lists them.
    """
    columns = columns or {}
    records = with_conversations(records, errors, columns.get("prompt"))
    _check_columns(records, errors, columns)
    rows: list[Row] = []
    repeated: list[tuple[int, int]] = []
    seen: dict[tuple[Any, ...], int] = {}
    ids: dict[str, int] = {}
    for record in records:
        try:
            row = _row(record, stem, columns, max_chars)
        except _InvalidRecord as error:
            errors.add(record.number, str(error))
            continue
        first = seen.setdefault(row.content, record.number)
        if first != record.number:
            repeated.append((record.number, first))
        elif row.id in ids:
            errors.add(
                record.number, f"id {_shown(row.id)} is already used by {errors.unit} {ids[row.id]}"
            )
        else:
            ids[row.id] = record.number
            rows.append(row)
    errors.check()
    if not rows:
        raise ConfigurationError(f"{errors.source} contains no prompt.")
    return rows, repeated


class _InvalidRecord(Exception):
    """Reason why a record is not a valid row."""


def _row(record: Record, stem: str, columns: Mapping[str, str], max_chars: int) -> Row:
    values = record.values
    fields = {name: _value(values, name, columns, max_chars) for name in FIELDS}
    if not any(fields[name] for name in _TEXTS):
        column = columns.get("prompt", "prompt")
        has = ", ".join(map(_shown, values)) or "nothing"
        hint = "it is empty" if column in values else f"this row has {has}"
        raise _InvalidRecord(f"no text in {column!r}; {hint}")
    split = fields.pop("split")
    if split is not None and split not in _SPLIT_NAMES:
        raise _InvalidRecord(f"split {_shown(split)} is not one of {', '.join(SPLITS)}")
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
        raise _InvalidRecord(f"facts is {kind_of(given)}; it must map names to texts")
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
    """Return the text of a field; None if it is missing or blank."""
    column = columns.get(name, name)
    value = values.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        if name in _TEXTS or isinstance(value, bool) or not isinstance(value, int | float):
            raise _InvalidRecord(f"{column} is {kind_of(value)}; it must be a text")
        value = str(value)
    if not value.strip():
        return None
    if len(value) > max_chars:
        raise _InvalidRecord(
            f"{column} has {len(value):,} characters; the maximum is {max_chars:,}. "
            "Raise max_chars to accept it"
        )
    if "\0" in value:
        raise _InvalidRecord(f"{column} contains NUL at position {value.index(chr(0)) + 1}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _InvalidRecord(
            f"{column} contains a lone surrogate at position {error.start + 1}, which cannot be "
            "encoded"
        ) from error
    return value


def _check_columns(
    records: Iterable[Record], errors: RowErrors, columns: Mapping[str, str]
) -> None:
    """Raise one error if a column does not exist, instead of one per row."""
    for name in columns:
        if name not in (*FIELDS, "facts") and not name.startswith("facts."):
            raise ConfigurationError(
                f"columns: unknown field {name!r}.{did_you_mean(name, FIELDS)} "
                f"The fields of a row are: {', '.join(FIELDS)}, facts.NAME."
            )
    known = list(dict.fromkeys(column for record in records for column in record.values))
    if not known:  # no valid records, so no columns to check
        return
    missing = [column for column in columns.values() if column not in known]
    if not missing and not any(columns.get(name, name) in known for name in _TEXTS):
        missing = [columns.get("prompt", "prompt")]
    if missing:
        raise ConfigurationError(
            f"{errors.source} has no column {missing[0]!r}."
            f"{did_you_mean(missing[0], known)} It has: {', '.join(map(_shown, known[:30]))}. "
            "If the prompts are in another column, name it: --column NAME of 'astra-rl test', "
            "columns: {prompt: NAME} under prompts in a configuration, or columns={'prompt': NAME}."
        )


def _shown(text: str, max_length: int = 60) -> str:
    """Return untrusted text escaped and shortened for a one-line message."""
    return ascii(text if len(text) <= max_length else text[:max_length] + "...")
