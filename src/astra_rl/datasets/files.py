"""Rows from the user's own data: files, folders, and datasets of Hugging Face."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from astra_rl.datasets.formats import READERS, add_object, first_line
from astra_rl.datasets.rows import MAX_CHARS, SPLITS, Problems, Record, Row, rows_of
from astra_rl.errors import ConfigurationError, did_you_mean, require
from astra_rl.infra.jsonio import unredacted_line
from astra_rl.infra.storage import reason_of_failure
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
        source: A file whose ending is one of `formats.READERS`, a folder of the `datasets` library,
            or ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``.
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
    reader, unit = READERS.get(path.suffix.lower(), (None, ""))
    if reader is None:
        known = [suffix for suffix in READERS if suffix]
        raise ConfigurationError(
            f"{name}: no reader for {path.suffix!r} files; use {', '.join(known)}."
            f"{did_you_mean(path.suffix, known)}"
        )
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = reason_of_failure(error)
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
        add_object(records, number, item, problems)
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


def _read_dataset(name: str, *, subset: str | None, split: str | None) -> RawTable:
    library = require("datasets", extra="data")
    try:
        found = _open_dataset(library, name, subset)
    except Exception as error:  # the library raises errors of many libraries
        raise ConfigurationError(f"cannot load the dataset {name}: {first_line(error)}") from error
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
