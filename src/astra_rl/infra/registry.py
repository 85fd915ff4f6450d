"""Registries: classes and functions by the names that a configuration may give."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cached_property
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.importing import is_path, load_object

EntryT = TypeVar("EntryT")
ObjectT = TypeVar("ObjectT", bound=Callable[..., Any])

_DECLARATION = re.compile(r'^@named\("([^"]+)"\)\n(?:@[^\n]*\n)*(?:class|def) (\w+)', re.MULTILINE)


def named(name: str) -> Callable[[ObjectT], ObjectT]:
    """Declare the name that a configuration gives to a class or function of this library.

    Write it as the first decorator, with the name as a literal: `declared_in` reads it from the
    source, so that a module is imported only when its entry is used.

    Args:
        name: The name.
    """

    def decorate(entry: ObjectT) -> ObjectT:
        DECLARED[f"{entry.__module__}:{entry.__name__}"] = name
        return entry

    return decorate


DECLARED: dict[str, str] = {}
"""Names by import path, of the modules that have been imported."""


def declared_in(package: str) -> dict[str, str]:
    """Return the import paths of what the modules of a package declare with `named`, by name.

    Nothing is imported.
    """
    found = {}
    for file in resources.files(package).iterdir():
        module, dot, suffix = file.name.rpartition(".")
        if dot and suffix == "py":
            for name, entry in _DECLARATION.findall(file.read_text(encoding="utf-8")):
                found[name] = f"{package}.{module}:{entry}"
    return dict(sorted(found.items()))


class Registry(MutableMapping[str, EntryT], Generic[EntryT]):
    """A mapping from names to classes or functions, each imported when it is first read.

    A name is looked up among the library's own entries and those added with
    ``registry[name] = entry``, then among the entry points that installed packages declare in
    `group`. Any other entry is named by its import path, ``"package.module:Name"``; paths are
    accepted by `check` and `load` but are no keys of the mapping.

    Args:
        kind: What an entry is, for messages, for instance ``"algorithm"``.
        group: Group of entry points, for instance ``"astra_rl.algorithms"``.
        entries: The entries, or their import paths, by name.
    """

    def __init__(self, kind: str, group: str, entries: Mapping[str, EntryT | str]) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, EntryT | str] = dict(entries)

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {each.name: each for each in entry_points(group=self.group)}

    def __getitem__(self, name: str) -> EntryT:
        """Return an entry by name, importing it if needed.

        Raises:
            KeyError: The name is unknown.
            ConfigurationError: The entry cannot be imported.
        """
        if name not in self:
            raise KeyError(name)
        return self.load(name)

    def __setitem__(self, name: str, entry: EntryT) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._entries
        yield from (name for name in self._entry_points if name not in self._entries)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        """Whether a name is known; nothing is imported."""
        return name in self._entries or name in self._entry_points

    def import_path(self, name: str) -> str | None:
        """Return where an entry is imported from; None for one that was added as an object."""
        entry = self._entries.get(name)
        if entry is None and name in self._entry_points:
            return self._entry_points[name].value
        return entry if isinstance(entry, str) else None

    def check(self, name: str) -> None:
        """Raise unless `name` is known or has the form of an import path; nothing is imported.

        Raises:
            ConfigurationError: It is neither; the nearest known name is suggested.
        """
        if not isinstance(name, str) or (name not in self and not is_path(name)):
            raise ConfigurationError(
                f"no {self.kind} {name!r}.{did_you_mean(str(name), self)} "
                f"Choose from {', '.join(self)}, or give a class or function of your own as "
                "'package.module:Name'."
            )

    def load(self, name: str) -> EntryT:
        """Return an entry by its name or import path. Importing runs the module.

        Raises:
            ConfigurationError: The name is unknown, or the entry cannot be imported.
            MissingDependencyError: Its module needs an extra that is not installed.
        """
        self.check(name)
        entry = self._entries.get(name)
        if entry is not None and not isinstance(entry, str):
            return entry
        path = self.import_path(name) or name
        loaded: EntryT = load_object(path)
        if not callable(loaded):
            raise ConfigurationError(
                f"{path!r} is of type {type(loaded).__name__}; name a class or function."
            )
        if name in self._entries:
            self._entries[name] = loaded
        return loaded


__all__ = ["DECLARED", "Registry", "declared_in", "named"]
