"""Loading of human-labelled texts from CSV or JSONL files."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astra_rl.core.text import Conversation, Exchange
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.csv_separators import separator_of
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.user_files import read_user_file

TEXT_COLUMNS = ("text", "response", "assistant_response", "reply")
ATTACK_COLUMNS = ("attack", "prompt", "objective", "question")
LABEL_COLUMNS = ("label", "labels")
GROUP_COLUMN = "group"
LABEL_PREFIXES = ("label_", "human_score", "rater")
LABEL_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
MAX_LISTED_ERRORS = 5
MAX_FIELD_CHARS = 10_000_000


@dataclass(frozen=True)
class LabelledText:
    """A text and its human labels.

    Attributes:
        text: The judged text: a string, or an `Exchange` if the file has an attack or facts.
        labels: One number in [0, 1] per rater, NaN for a missing label.
        line: Line number in the file, from 1.
        group: Name of the prompt or conversation that it is from; empty if it is not named.
    """

    text: str
    labels: tuple[float, ...]
    line: int
    group: str = ""

    @property
    def cluster(self) -> tuple[str, str]:
        """What texts have in common on which a moderator may err alike.

        It is the group; else the attack that the text answers; else the text itself.
        """
        attack = self.text.attack if isinstance(self.text, Exchange) else ""
        named = {"group": self.group, "attack": attack, "text": self.text}
        return next(((kind, str(value)) for kind, value in named.items() if value), ("text", ""))

    @property
    def truth(self) -> bool | None:
        """Whether the mean label is above 0.5; None for a tie (exactly 0.5)."""
        given = [label for label in self.labels if not math.isnan(label)]
        mean = math.fsum(given) / len(given)
        return None if mean == 0.5 else mean > 0.5


@dataclass(frozen=True)
class LabelledTexts:
    """The labelled texts of a file.

    Attributes:
        rows: The texts, at least one.
        name: Name of the file.
        sha256: Checksum of the file's bytes.
        raters: Names of the raters, in the order of the labels of a row.
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
    """Load a file of labelled texts. If any row is invalid, no row is loaded.

    CSV files have a header; lines before it that begin with ``#`` are skipped. JSONL files have one
    object per line. A label is a number in [0, 1], or true, false, yes or no; an empty label is
    missing. An optional column ``group`` names the prompt or conversation that a text is from. In
    JSONL, a label may also be a list with one entry per rater. Information for
    moderators only, such as a secret, is in a column ``facts.secret``, or in JSONL in an object
    ``facts``.

    Args:
        path: The file, with the suffix ``.csv`` or ``.jsonl``.
        text: Column of the text; None uses the first existing one of `TEXT_COLUMNS`.
        attack: Column of the message that the text responds to; None uses the first existing one of
            `ATTACK_COLUMNS`, if any.
        labels: Columns of the labels; by default `LABEL_COLUMNS` and all columns with a prefix in
            `LABEL_PREFIXES`.

    Raises:
        ConfigurationError: The file cannot be read, lacks a column, or has invalid rows, which are
            listed by line.
    """
    path = Path(path)
    try:
        data = read_user_file(path)
        content = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path} is not valid UTF-8 in line {line}. Convert it to UTF-8."
        ) from error
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise ConfigurationError(f"{path} must have the suffix .csv or .jsonl.")
    errors: list[str] = []
    raw = list(readers[path.suffix.lower()](content, errors))
    _raise_errors(path, errors)
    if not raw:
        raise ConfigurationError(f"{path} has no rows.")
    columns = list(dict.fromkeys(name for _, row in raw for name in row))
    roles = _Roles.choose(path, columns, text, attack, labels)
    found = [_labelled(row, line, roles, errors) for line, row in raw]
    _raise_errors(path, errors)
    rows = [row for row in found if row is not None]
    width = max(len(row.labels) for row in rows)
    padded = tuple(
        replace(row, labels=row.labels + (math.nan,) * (width - len(row.labels))) for row in rows
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
            missing = "text" if text is None else "label"
            raise ConfigurationError(
                f"{path} has no known {missing} column; it has {columns}. Name the column "
                "(--text, --label)."
            )
        return cls(text, attack, found)


def _csv_rows(content: str, errors: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = content.splitlines(keepends=True)
    skipped = 0
    while skipped < len(lines) and lines[skipped].startswith("#"):
        skipped += 1
    limit = csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        text = "".join(lines[skipped:])
        names = next(csv.reader(io.StringIO(text, newline=""), strict=True), [])
        separator = separator_of(names) or ","
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header = next(reader, [])
        at = reader.line_num
        for values in reader:
            line, at = skipped + at + 1, reader.line_num
            if len(values) == len(header):
                yield line, dict(zip(header, values, strict=True))
            elif values:
                errors.append(f"line {line}: {len(values)} fields, the header has {len(header)}")
    except csv.Error as error:
        errors.append(f"line {skipped + reader.line_num}: {error}")
    finally:
        csv.field_size_limit(limit)


def _jsonl_rows(content: str, errors: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(), because U+2028 may occur inside a JSON string.
    for line, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = parse_json(text)
        except (ValueError, RecursionError):
            errors.append(f"line {line}: not JSON")
            continue
        if isinstance(row, dict):
            yield line, row
        else:
            errors.append(f"line {line}: not an object")


def _labelled(
    row: Mapping[str, Any], line: int, roles: _Roles, errors: list[str]
) -> LabelledText | None:
    try:
        text = _string(row, roles.text)
        attack = "" if roles.attack is None else _string(row, roles.attack)
        labels = tuple(_label(value) for value in _flatten(row.get(name) for name in roles.labels))
        if all(map(math.isnan, labels)):
            raise ValueError("no label")
        facts, group = _facts(row), _group(row.get(GROUP_COLUMN))
    except ValueError as error:
        errors.append(f"line {line}: {error}")
        return None
    if roles.attack is None and not facts:
        return LabelledText(text, labels, line, group)
    return LabelledText(Exchange(Conversation(facts=facts), attack, text), labels, line, group)


def _string(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}, not a text")
    return value


def _flatten(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _label(value: Any) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    if isinstance(value, str):
        value = LABEL_WORDS.get(value.strip().lower(), value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"label {_shown(value)} is not a number from 0 to 1")
    return number


def _group(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise ValueError(f"group {_shown(value)} is not a text or a whole number")
    return "" if value is None else str(value).strip()


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


def _raise_errors(path: Path, errors: Sequence[str]) -> None:
    if errors:
        more = len(errors) - MAX_LISTED_ERRORS
        raise ConfigurationError(
            f"{path} has {len(errors)} invalid rows, so nothing was loaded:\n  "
            + "\n  ".join(errors[:MAX_LISTED_ERRORS])
            + (f"\n  and {more} more" if more > 0 else "")
        )
