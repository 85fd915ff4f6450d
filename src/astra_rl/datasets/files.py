"""Loading of rows from files, folders, and Hugging Face datasets."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from astra_rl.datasets.formats import READERS, add_object, read_csv, reason_of
from astra_rl.datasets.local_folders import open_local_dataset, without_files
from astra_rl.datasets.records import Record, RowErrors
from astra_rl.datasets.rows import MAX_CHARS, SPLITS, Row, parse_rows
from astra_rl.errors import ConfigurationError, did_you_mean, require
from astra_rl.infra.hub import without_telemetry
from astra_rl.infra.jsonio import unredacted_line
from astra_rl.infra.storage import reason_of_failure
from astra_rl.infra.user_files import read_user_file, user_path
from astra_rl.logging import logger

HUB_PREFIX = "hub:"
"""Prefix of Hugging Face Hub datasets; sources without it are never looked up on the hub."""

_MAX_LISTED = 5
_PLAIN = (str, int, float, list, dict, type(None))


@dataclass(frozen=True)
class Source:
    """Provenance of rows, for the record of a run.

    Attributes:
        name: The file, folder or dataset.
        sha256: Checksum of the file's bytes, as printed by ``sha256sum``; for a dataset, of its
            records as JSON lines.
        rows: Number of loaded rows.
        repeated: Number of rows that were dropped because an earlier row has the same content.
    """

    name: str
    sha256: str
    rows: int
    repeated: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class LoadedRows:
    """Rows and their provenance."""

    rows: tuple[Row, ...]
    source: Source


@dataclass(frozen=True)
class RawTable:
    """Records of a source before validation.

    Attributes:
        name: Name of the source in messages.
        records: The records in their order.
        errors: Errors of records that could not be parsed.
        sha256: Checksum of the content.
    """

    name: str
    records: list[Record]
    errors: RowErrors
    sha256: str


def load_rows(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    subset: str | None = None,
    split: str | None = None,
    encoding: str = "utf-8",
    separator: str | None = None,
    max_chars: int = MAX_CHARS,
) -> LoadedRows:
    """Load rows from a file, a folder or the hub.

    A text file has one prompt per line. Other formats have the columns of `rows.FIELDS`; a prompt,
    a system message or a brief is required, and unknown columns are ignored. The prompt may be a
    list of messages, as in data sets of TRL and verl, also in a column ``messages`` or
    ``conversations``: its system message and its first message of a user are used. Empty lines are
    skipped. Rows with the same content as an earlier row are dropped with a warning. If any row is
    invalid, no row is loaded, and the error lists the invalid rows by line.

    Args:
        source: A file with one of the suffixes in `formats.READERS`, a folder of the ``datasets``
            library, ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``.
        columns: Column names of fields whose column has another name, for example
            ``{"prompt": "question", "facts.secret": "password"}``.
        subset: Configuration name of a dataset.
        split: Split of a dataset. None loads all splits if they are named train, validation and
            test, or the only split.
        encoding: Text encoding of a text, CSV or JSON file.
        separator: Separator of the cells of a CSV file, one of `csv_separators.SEPARATORS`; None is
            that of its first line.
        max_chars: Maximum length of a text, in characters.

    Raises:
        ConfigurationError: The source cannot be read, or a row is invalid.
        MissingDependencyError: The extra ``data`` is required and not installed.
    """
    table = read_table(source, subset=subset, split=split, encoding=encoding, separator=separator)
    return rows_from(table, columns=columns, max_chars=max_chars)


def read_table(
    source: str | Path,
    *,
    subset: str | None = None,
    split: str | None = None,
    encoding: str = "utf-8",
    separator: str | None = None,
) -> RawTable:
    """Read the records of a source without validation; see `load_rows` for the arguments."""
    name = str(source)
    if name.startswith(HUB_PREFIX) or _is_folder(name):
        return _read_dataset(name, subset=subset, split=split)
    if subset is not None or split is not None:
        raise ConfigurationError(
            f"{name} is a file; subset and split apply to hub datasets and dataset folders only."
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
        data = read_user_file(path)
    except (OSError, ValueError) as error:
        reason = reason_of_failure(error)
        raise ConfigurationError(f"cannot read the prompts {name!a}: {reason}.") from error
    errors = RowErrors(name, unit)
    if separator is None:
        records = reader(data, errors, encoding)
    elif reader is read_csv:
        records = read_csv(data, errors, encoding, separator)
    else:
        raise ConfigurationError(f"{name}: separator={separator!r}: only .csv files have one.")
    return RawTable(name, records, errors, hashlib.sha256(data).hexdigest())


def rows_from(
    table: RawTable, *, columns: Mapping[str, str] | None = None, max_chars: int = MAX_CHARS
) -> LoadedRows:
    """Validate the records of a table and convert them to rows; see `load_rows`."""
    hub_name = table.name.removeprefix(HUB_PREFIX).partition("@")[0]
    stem = Path(hub_name if table.name.startswith(HUB_PREFIX) else table.name).stem
    rows, repeated = parse_rows(
        table.records, table.errors, stem=stem, columns=columns, max_chars=max_chars
    )
    if repeated:
        unit = table.errors.unit
        named = ", ".join(f"{unit} {at} (as {first})" for at, first in repeated[:_MAX_LISTED])
        more = ", ..." if len(repeated) > _MAX_LISTED else ""
        logger.warning(
            "%s: %d rows repeat earlier ones and are dropped: %s%s",
            *(table.name, len(repeated), named, more),
        )
    return LoadedRows(tuple(rows), Source(table.name, table.sha256, len(rows), len(repeated)))


def load_items(items: Sequence[object], *, name: str, max_chars: int = MAX_CHARS) -> LoadedRows:
    """Convert texts, and mappings with the columns of a row, to rows; see `load_rows`."""
    errors = RowErrors(name, "item")
    records: list[Record] = []
    for number, item in enumerate(items, start=1):
        add_object(records, number, item, errors)
    errors.check()
    sha256 = _sha256_of([record.values for record in records])
    return rows_from(RawTable(name, records, errors, sha256), max_chars=max_chars)


def source_of_rows(name: str, rows: Sequence[Row]) -> Source:
    """Return the provenance of rows that were generated by the program."""
    return Source(name, _sha256_of([asdict(row) for row in rows]), len(rows))


def _sha256_of(values: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for each in values:
        digest.update((unredacted_line(each) + "\n").encode())
    return digest.hexdigest()


def _is_folder(name: str) -> bool:
    try:
        return user_path(name).is_dir()
    except (OSError, ValueError):
        return False


def _read_dataset(name: str, *, subset: str | None, split: str | None) -> RawTable:
    library = require("datasets", extra="data")
    try:
        found = _open_dataset(library, name, subset)
    except ConfigurationError:
        raise
    except Exception as error:  # types of many libraries
        raise ConfigurationError(f"cannot load the dataset {name}: {reason_of(error)}") from error
    splits = dict(found) if isinstance(found, library.DatasetDict) else {"": found}
    records: list[Record] = []
    chosen = _select_splits(name, list(splits), split)
    for split_name in chosen:
        # A single split named "train" does not assign rows to the training split.
        own = {"split": split_name} if len(chosen) > 1 else {}
        # Images and audio are not text, have no reproducible checksum, and may name other files.
        for row in without_files(splits[split_name]):
            plain = {name: value for name, value in row.items() if isinstance(value, _PLAIN)}
            records.append(Record(len(records) + 1, {**own, **plain}))
    sha256 = _sha256_of(record.values for record in records)
    return RawTable(name, records, RowErrors(name, "row"), sha256)


def _open_dataset(library: Any, name: str, subset: str | None) -> Any:
    if name.startswith(HUB_PREFIX):
        repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        with without_telemetry():
            return library.load_dataset(repository, subset, revision=revision or None)
    with tempfile.TemporaryDirectory(prefix="astra_rl_") as cache:
        return open_local_dataset(library, user_path(name), subset, cache)


def _select_splits(name: str, known: list[str], wanted: str | None) -> list[str]:
    if wanted is not None and wanted not in known:
        raise ConfigurationError(
            f"{name} has no split {wanted!r}; choose from {', '.join(known) or 'none'}."
        )
    if wanted is not None:
        return [wanted]
    if len(known) > 1 and not set(known) <= set(SPLITS):
        raise ConfigurationError(f"{name} has the splits {', '.join(known)}; pass one as split.")
    return known
