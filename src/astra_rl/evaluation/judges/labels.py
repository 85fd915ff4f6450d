"""Texts that people have judged, from a CSV or JSONL file."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.core.text import Conversation, Exchange
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.jsonio import parse_json

TEXT_COLUMNS = ("text", "response", "assistant_response", "reply")
ATTACK_COLUMNS = ("attack", "prompt", "objective", "question")
LABEL_COLUMNS = ("label", "labels")
LABEL_PREFIXES = ("label_", "human_score", "rater")
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
MOST_SHOWN = 5
MAX_FIELD = 10_000_000


@dataclass(frozen=True)
class LabelledText:
    """A text and what people said of it.

    Attributes:
        text: What is judged: a string, or an `Exchange` if the file tells the attack or facts.
        labels: One number in [0, 1] per rater, NaN where a rater gave none.
        line: Where it stands in the file, counted from 1.
    """

    text: str
    labels: tuple[float, ...]
    line: int

    @property
    def truth(self) -> bool | None:
        """Whether the mean label is above one half; None if it is exactly that: a tie."""
        given = [label for label in self.labels if not math.isnan(label)]
        mean = math.fsum(given) / len(given)
        return None if mean == 0.5 else mean > 0.5


@dataclass(frozen=True)
class LabelledTexts:
    """All of a file.

    Attributes:
        rows: At least one.
        name: Of the file.
        sha256: Of its bytes.
        raters: How they are called; the labels of a row are in this order.
    """

    rows: tuple[LabelledText, ...]
    name: str
    sha256: str
    raters: tuple[str, ...]


def read_labels(
    path: str | Path,
    *,
    text: str | None = None,
    attack: str | None = None,
    labels: Sequence[str] = (),
) -> LabelledTexts:
    """Read a file of labelled texts, all of it or nothing.

    CSV has a header; lines before it that begin with ``#`` are skipped. JSONL has one object per
    line. A label is a number in [0, 1], or true, false, yes or no; a rater who gave none leaves it
    empty. In JSONL a label may also be a list, one per rater. What only moderators may know, for
    instance a secret, is a column ``facts.secret``, in JSONL an object ``facts``.

    Args:
        path: The file, ending in ``.csv`` or ``.jsonl``.
        text: Column of the text; None takes the first of `TEXT_COLUMNS` that there is.
        attack: Column of what the text answers; None takes the first of `ATTACK_COLUMNS`, if any.
        labels: Columns of the raters; none takes `LABEL_COLUMNS` and all that begin with one of
            `LABEL_PREFIXES`.

    Raises:
        ConfigurationError: The file cannot be read, lacks a column, or has bad rows, which are
            named by their line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        content = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path} is not UTF-8 in line {line}. Convert it first."
        ) from error
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise ConfigurationError(f"{path} must end in .csv or .jsonl.")
    problems: list[str] = []
    raw = list(readers[path.suffix.lower()](content, problems))
    _refuse(path, problems)
    if not raw:
        raise ConfigurationError(f"{path} has no rows.")
    columns = list(dict.fromkeys(name for _, row in raw for name in row))
    roles = _Roles.choose(path, columns, text, attack, labels)
    found = [_labelled(row, line, roles, problems) for line, row in raw]
    _refuse(path, problems)
    rows = [row for row in found if row is not None]
    width = max(len(row.labels) for row in rows)
    padded = tuple(
        LabelledText(row.text, row.labels + (math.nan,) * (width - len(row.labels)), row.line)
        for row in rows
    )
    raters = roles.labels if len(roles.labels) == width else tuple(map(str, range(1, width + 1)))
    return LabelledTexts(padded, path.name, hashlib.sha256(data).hexdigest(), raters)


@dataclass(frozen=True)
class _Roles:
    text: str
    attack: str | None
    labels: tuple[str, ...]

    @classmethod
    def choose(
        cls,
        path: Path,
        columns: Sequence[str],
        text: str | None,
        attack: str | None,
        labels: Sequence[str],
    ) -> _Roles:
        for name in [*filter(None, (text, attack)), *labels]:
            if name not in columns:
                raise ConfigurationError(
                    f"{path} has no column {name!r}; it has {columns}.{did_you_mean(name, columns)}"
                )
        text = text or next((name for name in TEXT_COLUMNS if name in columns), None)
        attack = attack or next((name for name in ATTACK_COLUMNS if name in columns), None)
        found = tuple(labels) or tuple(
            name
            for name in columns
            if name in LABEL_COLUMNS or name.lower().startswith(LABEL_PREFIXES)
        )
        if text is None or not found:
            lacking = "the text" if text is None else "a label"
            raise ConfigurationError(
                f"{path} has no column that is known to be {lacking}; it has {columns}. Name it "
                "(--text, --label)."
            )
        return cls(text, attack, found)


def _csv_rows(content: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = content.splitlines(keepends=True)
    skipped = 0
    while skipped < len(lines) and lines[skipped].startswith("#"):
        skipped += 1
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        reader = csv.reader(io.StringIO("".join(lines[skipped:]), newline=""), strict=True)
        header = next(reader, [])
        at = reader.line_num
        for values in reader:
            line, at = skipped + at + 1, reader.line_num
            if len(values) == len(header):
                yield line, dict(zip(header, values, strict=True))
            elif values:
                problems.append(f"line {line}: {len(values)} fields, the header has {len(header)}")
    except csv.Error as error:
        problems.append(f"line {skipped + reader.line_num}: {error}")
    finally:
        csv.field_size_limit(limit)


def _jsonl_rows(content: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): U+2028 may stand inside a JSON string.
    for line, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = parse_json(text)
        except (ValueError, RecursionError):
            problems.append(f"line {line}: not JSON")
            continue
        if isinstance(row, dict):
            yield line, row
        else:
            problems.append(f"line {line}: not an object")


def _labelled(
    row: Mapping[str, Any], line: int, roles: _Roles, problems: list[str]
) -> LabelledText | None:
    try:
        text = _string(row, roles.text)
        attack = "" if roles.attack is None else _string(row, roles.attack)
        labels = tuple(_label(value) for value in _flat(row.get(name) for name in roles.labels))
        if all(map(math.isnan, labels)):
            raise ValueError("no label")
        facts = _facts(row)
    except ValueError as error:
        problems.append(f"line {line}: {error}")
        return None
    if roles.attack is None and not facts:
        return LabelledText(text, labels, line)
    return LabelledText(Exchange(Conversation(facts=facts), attack, text), labels, line)


def _string(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}, not a text")
    return value


def _flat(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _label(value: Any) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    if isinstance(value, str):
        value = WORDS.get(value.strip().lower(), value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"label {_shown(value)} is not a number from 0 to 1")
    return number


def _facts(row: Mapping[str, Any]) -> dict[str, str]:
    facts = dict(row.get("facts") or {}) if isinstance(row.get("facts"), dict | None) else None
    if facts is None or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError("facts is not an object of texts")
    named = {
        name.removeprefix("facts."): value
        for name, value in row.items()
        if name.startswith("facts.") and isinstance(value, str) and value
    }
    return facts | named


def _shown(value: Any) -> str:
    return repr(value)[:40]


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - MOST_SHOWN
        raise ConfigurationError(
            f"{path} has {len(problems)} bad rows, so nothing was read:\n  "
            + "\n  ".join(problems[:MOST_SHOWN])
            + (f"\n  and {more} more" if more > 0 else "")
        )
