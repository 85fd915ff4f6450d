"""File formats that prompts come in: text, CSV, JSON, YAML, Parquet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator

import yaml

from astra_rl.datasets.rows import Record, RowErrors
from astra_rl.datasets.yaml_text import parse_yaml
from astra_rl.errors import ConfigurationError, require
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.unicode import well_formed

LISTS = ("prompts", "rows", "data", "seeds", "payloads")
"""Under one of these a JSON or YAML file may keep its list, beside what it says of itself."""


def _text_of(data: bytes, problems: RowErrors, encoding: str) -> str:
    """Decode a file, or name every line that is not of its encoding."""
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ConfigurationError(
                f"{problems.source} begins like a UTF-16 file, as some programs on Windows write "
                "them. Save it as UTF-8, or pass encoding='utf-16'."
            )
        encoding = "utf-8-sig"  # as UTF-8, but drops a byte order mark
    try:
        return data.decode(encoding)
    except LookupError as error:
        raise ConfigurationError(
            f"encoding={encoding!r} is unknown; for instance 'utf-8', 'cp1252' or 'utf-16'."
        ) from error
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            problems.add(data[: error.start].count(b"\n") + 1, f"not {encoding} ({error.reason})")
            problems.check()
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(
                number, f"not UTF-8 ({error.reason}); save the file as UTF-8, or pass encoding=..."
            )
    problems.check()
    raise AssertionError("a file that is not UTF-8 has a line that is not")


def _read_text(data: bytes, problems: RowErrors, encoding: str) -> list[Record]:
    lines = re.split(r"\r\n|\r|\n", _text_of(data, problems, encoding))
    return [
        Record(number, {"prompt": line.strip()})
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _read_csv(
    data: bytes, problems: RowErrors, encoding: str, delimiter: str = ","
) -> list[Record]:
    text = _text_of(data, problems, encoding)
    limit = csv.field_size_limit(max(len(text), 1))  # ours is max_chars, which says more
    try:
        return list(_csv_records(text, problems, delimiter))
    finally:
        csv.field_size_limit(limit)


def _csv_records(text: str, problems: RowErrors, delimiter: str) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not any(cells):
                continue
            if header is None:
                header = _header(cells, problems)
            elif len(cells) != len(header):
                problems.add(number, f"{len(cells)} cells, but the header has {len(header)}")
            else:
                yield Record(number, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        # Where the quotes are wrong, nothing after it can be told apart.
        problems.add(start, f"not CSV ({error}); the lines after it were not read")


def _header(cells: list[str], problems: RowErrors) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{problems.source}: two columns are called {twice[0]!r}.")
    return names


def _read_tsv(data: bytes, problems: RowErrors, encoding: str) -> list[Record]:
    return _read_csv(data, problems, encoding, "\t")


def _read_jsonl(data: bytes, problems: RowErrors, encoding: str) -> list[Record]:
    records: list[Record] = []
    for number, line in enumerate(_text_of(data, problems, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            add_object(records, number, parse_json(line), problems)
        except (ValueError, RecursionError) as error:
            problems.add(number, f"not JSON ({_reason(error)})")
    return records


def _read_json(data: bytes, problems: RowErrors, encoding: str) -> list[Record]:
    text = _text_of(data, problems, encoding)
    try:
        items = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{problems.source} is not JSON: {_reason(error)}.") from error
    return _listed(items, problems)


def _read_yaml(data: bytes, problems: RowErrors, encoding: str) -> list[Record]:
    text = _text_of(data, problems, encoding)
    try:
        items = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        reason = "too deeply nested" if isinstance(error, RecursionError) else first_line(error)
        raise ConfigurationError(f"{problems.source} is not YAML{where}: {reason}.") from error
    return _listed(items, problems)


def _listed(items: object, problems: RowErrors) -> list[Record]:
    """Make records of a list, or of the one list of a mapping that is known to hold prompts."""
    if isinstance(items, dict):
        lists = [items[name] for name in LISTS if isinstance(items.get(name), list)]
        items = lists[0] if len(lists) == 1 else None
    if not isinstance(items, list):
        raise ConfigurationError(
            f"{problems.source} must hold a list of prompts, or one under {', '.join(LISTS)}; call "
            "it .jsonl if each line is one."
        )
    records: list[Record] = []
    for number, item in enumerate(items, start=1):
        add_object(records, number, item, problems)
    return records


def add_object(records: list[Record], number: int, item: object, problems: RowErrors) -> None:
    """Add the record of a text or of a mapping, or say what it is instead."""
    if isinstance(item, str):
        records.append(Record(number, {"prompt": item}))
    elif isinstance(item, dict):
        records.append(Record(number, item))
    else:
        problems.add(number, "neither an object nor a text")


def _reason(error: Exception) -> str:
    return "too deeply nested" if isinstance(error, RecursionError) else str(error)


def _read_parquet(data: bytes, problems: RowErrors, encoding: str) -> list[Record]:
    arrow = require("pyarrow", extra="data")
    parquet = require("pyarrow.parquet", extra="data")
    try:
        rows = parquet.read_table(arrow.BufferReader(data)).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ConfigurationError(
            f"{problems.source} cannot be read as Parquet: {first_line(error)}."
        ) from error
    return [Record(number, row) for number, row in enumerate(rows, start=1)]


READERS: dict[str, tuple[Callable[[bytes, RowErrors, str], list[Record]], str]] = {
    "": (_read_text, "line"),
    ".txt": (_read_text, "line"),
    ".csv": (_read_csv, "line"),
    ".tsv": (_read_tsv, "line"),
    ".jsonl": (_read_jsonl, "line"),
    ".json": (_read_json, "item"),
    ".yaml": (_read_yaml, "item"),
    ".yml": (_read_yaml, "item"),
    ".prompt": (_read_yaml, "item"),
    ".parquet": (_read_parquet, "row"),
}
"""How a file of each ending is read, and what its records are counted in."""


def first_line(error: BaseException) -> str:
    """Return the beginning of a message that may be long."""
    text = well_formed(str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
