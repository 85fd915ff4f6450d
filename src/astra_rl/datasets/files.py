"""Rows from the user's own data: text, CSV, JSON, Parquet, and datasets of Hugging Face."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from astra_rl.core.jsonio import unredacted_line
from astra_rl.core.text import well_formed
from astra_rl.datasets.rows import MAX_CHARS, SPLITS, Problems, Record, Row, rows_of
from astra_rl.errors import ConfigurationError, did_you_mean, require
from astra_rl.logging import logger

HUB_PREFIX = "hub:"
"""Begins the name of a dataset of the Hugging Face Hub; nothing else is ever looked up there."""

_NAMED_REPEATS = 5
_PLAIN = (str, int, float, list, dict, type(None))


@dataclass(frozen=True)
class Source:
    """Where rows came from, for the record of a run.

    Attributes:
        name: The file, folder or dataset.
        sha256: Of the file's bytes, as ``sha256sum`` prints it; of a dataset, of its records as
            one line of JSON each.
        rows: How many rows it gave.
        repeated: How many of its rows said the same as an earlier one and were left out.
    """

    name: str
    sha256: str
    rows: int
    repeated: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes in JSON's types."""
        return asdict(self)


@dataclass(frozen=True)
class Loaded:
    """Rows and where they came from."""

    rows: tuple[Row, ...]
    source: Source


@dataclass(frozen=True)
class RawTable:
    """The records of a source before they are checked.

    Attributes:
        name: What to call the source in messages.
        records: In their order.
        problems: What could not even be read.
        sha256: Of the content.
    """

    name: str
    records: list[Record]
    problems: Problems
    sha256: str


def load_rows(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    subset: str | None = None,
    split: str | None = None,
    encoding: str = "utf-8",
    max_chars: int = MAX_CHARS,
) -> Loaded:
    """Read rows from a file, a folder or the hub.

    A text file has one prompt per line. Everything else has the columns of `rows.FIELDS`, of which
    only a prompt (or a system message, or a brief) is needed; others are ignored. Empty lines are
    left out. Rows that say the same as an earlier one are left out and a warning names them. If
    anything is wrong, an error names all that is, by line, and nothing is loaded.

    Args:
        source: A file that ends in .txt, .csv, .tsv, .jsonl, .json or .parquet, a folder of the
            `datasets` library, or ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``.
        columns: The column of each field that is not called like it, for instance
            ``{"prompt": "question", "facts.secret": "password"}``.
        subset: Configuration of a dataset that has several.
        split: Split of a dataset; None takes all if they are called train, validation and test,
            or the only one.
        encoding: Of a text, CSV or JSON file.
        max_chars: Longest text that is accepted.

    Raises:
        ConfigurationError: It cannot be read, or a row is bad; the message names lines.
        MissingDependencyError: The extra ``data`` is needed and not installed.
    """
    table = read_table(source, subset=subset, split=split, encoding=encoding)
    return rows_from(table, columns=columns, max_chars=max_chars)


def read_table(
    source: str | Path,
    *,
    subset: str | None = None,
    split: str | None = None,
    encoding: str = "utf-8",
) -> RawTable:
    """Read the records of a source without looking at what they say; see `load_rows`."""
    name = str(source)
    if name.startswith(HUB_PREFIX) or _is_folder(name):
        return _read_dataset(name, subset=subset, split=split)
    if subset is not None or split is not None:
        raise ConfigurationError(
            f"{name} is a file; subset and split are for datasets of the hub and folders of them."
        )
    path = Path(name)
    reader, unit = _READERS.get(path.suffix.lower(), (None, ""))
    if reader is None:
        known = [suffix for suffix in _READERS if suffix]
        raise ConfigurationError(
            f"{name}: no reader for {path.suffix!r} files; use {', '.join(known)}."
            f"{did_you_mean(path.suffix, known)}"
        )
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot read the prompts {name!a}: {reason}.") from error
    problems = Problems(name, unit)
    records = reader(data, problems, encoding)
    return RawTable(name, records, problems, hashlib.sha256(data).hexdigest())


def rows_from(
    table: RawTable, *, columns: Mapping[str, str] | None = None, max_chars: int = MAX_CHARS
) -> Loaded:
    """Check the records of a table and make rows of them; see `load_rows`."""
    hub_name = table.name.removeprefix(HUB_PREFIX).partition("@")[0]
    stem = Path(hub_name if table.name.startswith(HUB_PREFIX) else table.name).stem
    rows, repeated = rows_of(
        table.records, table.problems, stem=stem, columns=columns, max_chars=max_chars
    )
    if repeated:
        unit = table.problems.unit
        named = ", ".join(f"{unit} {at} (as {first})" for at, first in repeated[:_NAMED_REPEATS])
        more = ", ..." if len(repeated) > _NAMED_REPEATS else ""
        logger.warning(
            "%s: %d rows repeat earlier ones and are left out: %s%s",
            *(table.name, len(repeated), named, more),
        )
    return Loaded(tuple(rows), Source(table.name, table.sha256, len(rows), len(repeated)))


def load_items(items: Sequence[object], *, name: str, max_chars: int = MAX_CHARS) -> Loaded:
    """Make rows of texts and of mappings with the columns of a row; see `load_rows`."""
    problems = Problems(name, "item")
    records: list[Record] = []
    for number, item in enumerate(items, start=1):
        _add_object(records, number, item, problems)
    problems.check()
    sha256 = _sha256_of([record.values for record in records])
    return rows_from(RawTable(name, records, problems, sha256), max_chars=max_chars)


def source_of_rows(name: str, rows: Sequence[Row]) -> Source:
    """Return the record of rows that were made here and come from no file."""
    return Source(name, _sha256_of([asdict(row) for row in rows]), len(rows))


def _sha256_of(values: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for each in values:
        digest.update((unredacted_line(each) + "\n").encode())
    return digest.hexdigest()


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def _text_of(data: bytes, problems: Problems, encoding: str) -> str:
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


def _read_text(data: bytes, problems: Problems, encoding: str) -> list[Record]:
    lines = re.split(r"\r\n|\r|\n", _text_of(data, problems, encoding))
    return [
        Record(number, {"prompt": line.strip()})
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _read_csv(data: bytes, problems: Problems, encoding: str, delimiter: str = ",") -> list[Record]:
    text = _text_of(data, problems, encoding)
    limit = csv.field_size_limit(max(len(text), 1))  # ours is max_chars, which says more
    try:
        return list(_csv_records(text, problems, delimiter))
    finally:
        csv.field_size_limit(limit)


def _csv_records(text: str, problems: Problems, delimiter: str) -> Iterator[Record]:
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


def _header(cells: list[str], problems: Problems) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{problems.source}: two columns are called {twice[0]!r}.")
    return names


def _read_tsv(data: bytes, problems: Problems, encoding: str) -> list[Record]:
    return _read_csv(data, problems, encoding, "\t")


def _read_jsonl(data: bytes, problems: Problems, encoding: str) -> list[Record]:
    records: list[Record] = []
    for number, line in enumerate(_text_of(data, problems, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            _add_object(records, number, json.loads(line), problems)
        except (ValueError, RecursionError) as error:
            problems.add(number, f"not JSON ({_reason(error)})")
    return records


def _read_json(data: bytes, problems: Problems, encoding: str) -> list[Record]:
    text = _text_of(data, problems, encoding)
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{problems.source} is not JSON: {_reason(error)}.") from error
    if not isinstance(items, list):
        raise ConfigurationError(
            f"{problems.source} must hold a list of prompts; call it .jsonl if each line is one."
        )
    records: list[Record] = []
    for number, item in enumerate(items, start=1):
        _add_object(records, number, item, problems)
    return records


def _add_object(records: list[Record], number: int, item: object, problems: Problems) -> None:
    if isinstance(item, str):
        records.append(Record(number, {"prompt": item}))
    elif isinstance(item, dict):
        records.append(Record(number, item))
    else:
        problems.add(number, "neither an object nor a text")


def _reason(error: Exception) -> str:
    return "too deeply nested" if isinstance(error, RecursionError) else str(error)


def _read_parquet(data: bytes, problems: Problems, encoding: str) -> list[Record]:
    arrow = require("pyarrow", extra="data")
    parquet = require("pyarrow.parquet", extra="data")
    try:
        rows = parquet.read_table(arrow.BufferReader(data)).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ConfigurationError(
            f"{problems.source} cannot be read as Parquet: {_first_line(error)}."
        ) from error
    return [Record(number, row) for number, row in enumerate(rows, start=1)]


_READERS: dict[str, tuple[Callable[[bytes, Problems, str], list[Record]], str]] = {
    "": (_read_text, "line"),
    ".txt": (_read_text, "line"),
    ".csv": (_read_csv, "line"),
    ".tsv": (_read_tsv, "line"),
    ".jsonl": (_read_jsonl, "line"),
    ".json": (_read_json, "item"),
    ".parquet": (_read_parquet, "row"),
}


def _read_dataset(name: str, *, subset: str | None, split: str | None) -> RawTable:
    library = require("datasets", extra="data")
    try:
        found = _open_dataset(library, name, subset)
    except Exception as error:  # the library raises errors of many libraries
        raise ConfigurationError(f"cannot load the dataset {name}: {_first_line(error)}") from error
    splits = dict(found) if isinstance(found, library.DatasetDict) else {"": found}
    records: list[Record] = []
    chosen = _chosen_splits(name, list(splits), split)
    for split_name in chosen:
        own = {"split": split_name} if len(chosen) > 1 else {}  # a lone "train" is no division
        for row in splits[split_name]:
            # Pictures and sounds are not text, and have no checksum that lasts.
            told = {name: value for name, value in row.items() if isinstance(value, _PLAIN)}
            records.append(Record(len(records) + 1, {**own, **told}))
    sha256 = _sha256_of(record.values for record in records)
    return RawTable(name, records, Problems(name, "row"), sha256)


def _open_dataset(library: Any, name: str, subset: str | None) -> Any:
    if name.startswith(HUB_PREFIX):
        repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        return library.load_dataset(repository, subset, revision=revision or None)
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return library.load_from_disk(folder)
    return library.load_dataset(str(folder), subset)


def _chosen_splits(name: str, known: list[str], wanted: str | None) -> list[str]:
    if wanted is not None and wanted not in known:
        raise ConfigurationError(
            f"{name} has no split {wanted!r}; choose from {', '.join(known) or 'none'}."
        )
    if wanted is not None:
        return [wanted]
    if len(known) > 1 and not set(known) <= set(SPLITS):
        raise ConfigurationError(f"{name} has the splits {', '.join(known)}; name one with split.")
    return known


def _first_line(error: BaseException) -> str:
    text = well_formed(str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
