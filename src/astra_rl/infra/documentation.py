"""Docstrings of classes and functions that share options.

A shared option is described once; `document_options` adds the descriptions, with the defaults of
each class or function, to the docstrings of all that take it, so that ``help(GRPO)`` is complete.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

_NEXT_SECTION = re.compile(r"\n\n(?=(?:Attributes|Returns|Yields|Raises):\n)")


def document_options(*groups: Mapping[str, str], **defaults: Any) -> Callable[[T], T]:
    """Return a decorator that completes the ``Args`` section of a class or function.

    Args:
        groups: Descriptions by option; an option that the docstring describes itself is skipped. A
            later description of an option replaces an earlier one.
        defaults: Defaults that differ from those of the signature in which an option is defined.
    """
    descriptions = {name: text for group in groups for name, text in group.items()}

    def decorate(documented: T) -> T:
        known = _defaults_of(documented) | defaults
        documented.__doc__ = _completed(documented.__doc__ or "", descriptions, known)
        return documented

    return decorate


def _defaults_of(documented: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of the parameters of a function, or of a class and its bases."""
    callees: list[Callable[..., Any]] = [documented]
    if inspect.isclass(documented):
        bases = [base for base in reversed(documented.__mro__) if base is not object]
        callees = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    found: dict[str, Any] = {}
    for callee in callees:
        found |= {p.name: p.default for p in inspect.signature(callee).parameters.values()}
    return {name: each for name, each in found.items() if each is not inspect.Parameter.empty}


def _completed(doc: str, descriptions: Mapping[str, str], defaults: Mapping[str, Any]) -> str:
    text = inspect.cleandoc(doc)
    if "\nArgs:\n" not in text:
        following = _NEXT_SECTION.search(text)
        end = following.start() if following else len(text)
        text = f"{text[:end]}\n\nArgs:\n{text[end:]}"
    head, marker, rest = text.partition("\nArgs:\n")
    own, blank, tail = rest.partition("\n\n")
    entries = [
        textwrap.fill(
            f"{name}: {description}"
            + (f" Default: {defaults[name]!r}." if name in defaults else ""),
            width=96,
            initial_indent="    ",
            subsequent_indent="        ",
            break_on_hyphens=False,
        )
        for name, description in descriptions.items()
        if f"\n    {name}:" not in f"\n{own}"
    ]
    return head + marker + "\n".join([*([own] if own else []), *entries]) + blank + tail + "\n"
