"""Readers of prompt files: text, CSV, JSON, YAML, Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator

import yaml

from astra_rl.datasets.records import Record, RowErrors
from astra_rl.datasets.yaml_text import parse_yaml
from astra_rl.errors import ConfigurationError, first_line, require
from astra_rl.infra.csv_separators import SEPARATORS, separator_of
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.unicode import well_formed

LISTS = ("prompts", "rows", "data", "seeds", "payloads")
"""Keys under which a JSON or YAML mapping may hold its list of rows, beside metadata."""


def _text_of(data: bytes, errors: RowErrors, encoding: str) -> str:
    """Decode a file, or raise an error that lists every undecodable line."""
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ConfigurationError(
                f"{errors.source} begins with a UTF-16 byte order mark, as written by some Windows "
                "programs. Save it as UTF-8, or pass encoding='utf-16'."
            )
        encoding = "utf-8-sig"  # drops a byte order mark
    try:
        return data.decode(encoding)
    except LookupError as error:
        raise ConfigurationError(
            f"encoding={encoding!r} is unknown; use for example 'utf-8', 'cp1252' or 'utf-16'."
        ) from error
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            errors.add(data[: error.start].count(b"\n") + 1, f"not {encoding} ({error.reason})")
            errors.check()
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            errors.add(
                number, f"not UTF-8 ({error.reason}); save the file as UTF-8, or pass encoding=..."
            )
    errors.check()
    raise AssertionError("undecodable file without an undecodable line")


def _read_text(data: bytes, errors: RowErrors, encoding: str) -> list[Record]:
    lines = re.split(r"\r\n|\r|\n", _text_of(data, errors, encoding))
    return [
        Record(number, {"prompt": line.strip()})
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def read_csv(
    data: bytes, errors: RowErrors, encoding: str, separator: str | None = None
) -> list[Record]:
    """Read a CSV file, whose first line has the names of the columns and, if None, the separator.

    Raises:
        ConfigurationError: The separator is none of `SEPARATORS`, or not that of the first line.
    """
    if separator is not None and separator not in SEPARATORS:
        raise ConfigurationError(
            f"separator={separator!r}; choose one of {', '.join(map(repr, SEPARATORS))}."
        )
    text = _text_of(data, errors, encoding)
    limit = csv.field_size_limit(max(len(text), 1))  # max_chars is checked later
    try:
        return list(_csv_records(text, errors, separator or _separator_of_text(text)))
    finally:
        csv.field_size_limit(limit)


def _separator_of_text(text: str) -> str:
    """Return the separator of the first line with a cell; a comma if it does not tell."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return separator_of(next(filter(any, rows), [])) or ","
    except csv.Error:  # it is reported by line when the rows are read
        return ","


def _csv_records(text: str, errors: RowErrors, separator: str) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not any(cells):
                continue
            if header is None:
                header = _header(cells, errors)
                if other := separator_of(header):
                    raise ConfigurationError(
                        f"{errors.source}: its columns {header[0]!a} are separated by "
                        f"{SEPARATORS[other]}. Set separator: {json.dumps(other)}."
                    )
            elif len(cells) != len(header):
                errors.add(number, f"{len(cells)} cells, but the header has {len(header)}")
            else:
                yield Record(number, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        # After a quoting error, later rows cannot be delimited.
        errors.add(start, f"not CSV ({error}); the lines after it were not read")


def _header(cells: list[str], errors: RowErrors) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{errors.source}: two columns are named {twice[0]!r}.")
    return names


def _read_tsv(data: bytes, errors: RowErrors, encoding: str) -> list[Record]:
    return read_csv(data, errors, encoding, "\t")


def _read_jsonl(data: bytes, errors: RowErrors, encoding: str) -> list[Record]:
    records: list[Record] = []
    for number, line in enumerate(_text_of(data, errors, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            add_object(records, number, parse_json(line), errors)
        except (ValueError, RecursionError) as error:
            errors.add(number, f"not JSON ({_parse_reason(error)})")
    return records


def _read_json(data: bytes, errors: RowErrors, encoding: str) -> list[Record]:
    text = _text_of(data, errors, encoding)
    try:
        items = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{errors.source} is not JSON: {_parse_reason(error)}.") from error
    return _records_of(items, errors)


def _read_yaml(data: bytes, errors: RowErrors, encoding: str) -> list[Record]:
    text = _text_of(data, errors, encoding)
    try:
        items = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        reason = "too deeply nested" if isinstance(error, RecursionError) else reason_of(error)
        raise ConfigurationError(f"{errors.source} is not YAML{where}: {reason}.") from error
    return _records_of(items, errors)


def _records_of(items: object, errors: RowErrors) -> list[Record]:
    """Convert a list, or the only list under one of `LISTS` in a mapping, to records."""
    if isinstance(items, dict):
        lists = [items[name] for name in LISTS if isinstance(items.get(name), list)]
        items = lists[0] if len(lists) == 1 else None
    if not isinstance(items, list):
        raise ConfigurationError(
            f"{errors.source} must contain a list of prompts, or a mapping with a list under "
            f"{', '.join(LISTS)}. For one JSON object per line use the suffix .jsonl."
        )
    records: list[Record] = []
    for number, item in enumerate(items, start=1):
        add_object(records, number, item, errors)
    return records


def add_object(records: list[Record], number: int, item: object, errors: RowErrors) -> None:
    """Append the record of a text or mapping, or add an error for any other type."""
    if isinstance(item, str):
        records.append(Record(number, {"prompt": item}))
    elif isinstance(item, dict):
        records.append(Record(number, item))
    else:
        errors.add(number, "neither an object nor a text")


def _parse_reason(error: Exception) -> str:
    return "too deeply nested" if isinstance(error, RecursionError) else str(error)


def _read_parquet(data: bytes, errors: RowErrors, encoding: str) -> list[Record]:
    arrow = require("pyarrow", extra="data")
    parquet = require("pyarrow.parquet", extra="data")
    try:
        rows = parquet.read_table(arrow.BufferReader(data)).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ConfigurationError(
            f"{errors.source} cannot be read as Parquet: {reason_of(error)}."
        ) from error
    return [Record(number, row) for number, row in enumerate(rows, start=1)]


READERS: dict[str, tuple[Callable[[bytes, RowErrors, str], list[Record]], str]] = {
    "": (_read_text, "line"),
    ".txt": (_read_text, "line"),
    ".csv": (read_csv, "line"),
    ".tsv": (_read_tsv, "line"),
    ".jsonl": (_read_jsonl, "line"),
    ".json": (_read_json, "item"),
    ".yaml": (_read_yaml, "item"),
    ".yml": (_read_yaml, "item"),
    ".prompt": (_read_yaml, "item"),
    ".parquet": (_read_parquet, "row"),
}
"""For each file suffix, its reader and the unit in which its records are counted."""


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, without lone surrogates."""
    return well_formed(first_line(error))
