"""Keys of the sections of a configuration, which are pydantic models or dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_type_hints

from pydantic import BaseModel, Tag

REQUIRED = dataclasses.MISSING
"""Default of a key that must be given."""


class Key(NamedTuple):
    """A key of a section.

    Attributes:
        type: Its type.
        default: Its default; `REQUIRED` if it has none.
        description: What it is; empty if it is not described.
    """

    type: Any
    default: Any
    description: str


def keys_of(section: Any) -> dict[str, Key]:
    """Return the keys of a section by name."""
    if not dataclasses.is_dataclass(section):
        return {
            name: Key(
                each.annotation,
                REQUIRED
                if each.is_required()
                else each.get_default(call_default_factory=True, validated_data={}),
                each.description or "",
            )
            for name, each in section.model_fields.items()
        }
    types, described = get_type_hints(section), _described_attributes(section)
    return {
        each.name: Key(types[each.name], each.default, described.get(each.name, ""))
        for each in dataclasses.fields(section)
    }


def section_class(annotation: Any) -> Any:
    """Return the first section among the members of an annotation; None without one."""
    return next(_sections(annotation), None)


def tagged_sections(annotation: Any) -> dict[str, Any]:
    """Return the sections of a union by the tag that tells them apart; see `pydantic.Tag`."""
    found: dict[str, Any] = {}
    for each in get_args(annotation):
        tags = [more.tag for more in getattr(each, "__metadata__", ()) if isinstance(more, Tag)]
        found |= {tag: section_class(each) for tag in tags} or tagged_sections(each)
    return found


def _sections(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    ):
        yield annotation
    for each in get_args(annotation):
        yield from _sections(each)


def _described_attributes(section: Any) -> dict[str, str]:
    """Return the descriptions under "Attributes:" in the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        _, _, rest = inspect.cleandoc(vars(base).get("__doc__") or "").partition("\nAttributes:\n")
        entries = re.split(r"^ {4}(\w+): ", rest.partition("\n\n")[0], flags=re.MULTILINE)[1:]
        texts = (re.sub(r"\s+", " ", text).strip() for text in entries[1::2])
        found |= dict(zip(entries[::2], texts, strict=True))
    return found
