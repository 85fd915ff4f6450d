"""Load data sets from local folders, which must not name files or addresses elsewhere.

A folder of the ``datasets`` library can name data files: in its card (``README.md``), in the JSON
files of ``save_to_disk``, by links, and in columns of images or audio, which are files that are
opened when a row is read. All of these can lead out of the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from astra_rl.datasets.yaml_text import has_at_most, parse_yaml
from astra_rl.errors import ConfigurationError
from astra_rl.infra.jsonio import parse_json

TEXT_BUILDERS = frozenset({"arrow", "csv", "json", "parquet", "text"})
"""Builders of the ``datasets`` library whose rows are in the data files themselves."""
MOST_VALUES = 100_000
"""Most values in the metadata of a card, with YAML aliases expanded."""
_CARDS = ("README.md", ".huggingface.yaml")
_FRONT_MATTER = re.compile(r"\A\s*---\s*\n(.*?\n)---\s*(?:\n|\Z)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:")


def open_local_dataset(library: Any, folder: Path, subset: str | None, cache: str) -> Any:
    """Open a folder of ``save_to_disk``, or a folder of data files.

    The library takes rows from its cache if a file has the modification time of an earlier one, as
    a copy or a restored file can. So the cache is an empty folder, and the rows are in memory.

    Args:
        library: The module ``datasets``.
        folder: The folder.
        subset: Configuration name; None is the default one.
        cache: An empty folder.

    Raises:
        ConfigurationError: The folder names a file or an address outside of it.
    """
    _check_links(folder)
    is_saved = False
    for path in _files(folder):
        if path.name in ("state.json", "dataset_dict.json"):
            is_saved |= path.parent == folder
            _check_names(folder, path, _read_json(path))
        elif path.name in _CARDS:
            _check_names(folder, path, _read_card(path))
    if is_saved:
        return library.load_from_disk(folder)
    builder = library.load_dataset_builder(str(folder), subset, cache_dir=cache)
    _check_builder(folder, builder)
    builder.download_and_prepare()
    return builder.as_dataset(in_memory=True)


def without_files(dataset: Any) -> Any:
    """Return a data set without the columns whose values are files, such as images and audio."""
    text = [name for name, feature in dataset.features.items() if not _opens_files(feature)]
    return dataset.select_columns(text)


def _opens_files(feature: Any) -> bool:
    if hasattr(feature, "decode_example"):
        return True
    inner = getattr(feature, "feature", feature)
    if isinstance(inner, Mapping):
        return any(map(_opens_files, inner.values()))
    if isinstance(inner, list | tuple):
        return any(map(_opens_files, inner))
    return inner is not feature and _opens_files(inner)


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in sorted(names))


def _check_links(folder: Path) -> None:
    home = folder.resolve()
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            is_inside = path.resolve().is_relative_to(home)
            if not is_inside or not (path.is_file() or path.is_dir()):
                raise _leads_out(folder, path, f"{name!r} is a link to elsewhere, or is no file")


def _check_names(folder: Path, source: Path, value: Any) -> None:
    """Check every text that can name a data file."""
    for name in _names(value):
        parts = re.split(r"[\\/]", name)
        if name.startswith(("/", "\\", "~")) or ".." in parts or _DRIVE.match(name):
            raise _leads_out(folder, source, f"it names {name!r}")
        if "://" in name or "::" in name:
            raise _leads_out(folder, source, f"it names the address {name!r}")


def _names(value: Any, *, named: bool = False) -> Iterator[str]:
    """Yield the names of files, folders and splits in the metadata of a data set."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            is_name = key in ("data_files", "data_dir", "path", "filename", "_data_files", "splits")
            yield from _names(inner, named=named or is_name)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner, named=named)
    elif named and isinstance(value, str):
        yield value


def _check_builder(folder: Path, builder: Any) -> None:
    if builder.name not in TEXT_BUILDERS:
        raise ConfigurationError(
            f"{folder} is a data set of type {builder.name!r}, whose rows are not text; give "
            f"{', '.join(sorted(TEXT_BUILDERS))} files."
        )
    home = folder.resolve()
    for files in (builder.config.data_files or {}).values():
        for file in files:
            if not Path(file).resolve().is_relative_to(home):
                raise _leads_out(folder, folder, f"it names {str(file)!r}")


def _leads_out(folder: Path, source: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"the data set {folder} leads out of its folder: {source.name}: {what}. Data of a local "
        "folder is read from it alone: copy the file into the folder, or remove the name."
    )


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error


def _read_card(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            found = _FRONT_MATTER.match(text.lstrip("\ufeff"))
            text = found[1] if found else ""
        card = parse_yaml(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the card {path}: {error}") from error
    if not has_at_most(card, MOST_VALUES):
        raise ConfigurationError(f"the card {path} has more than {MOST_VALUES} values.")
    return card
