"""Ranges of numbers, stated once: in the annotation of an option.

``lr: Annotated[float, Range(gt=0)]`` is read by pydantic where the option stands in a configuration
file, and by `check_ranges` where it is given in Python.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from astra_rl.errors import ConfigurationError


@dataclass(frozen=True)
class Range:
    """Range of an ``int`` or a ``float``, as metadata of its annotation. NaN is in no range.

    Attributes:
        gt: Exclusive lower bound.
        ge: Inclusive lower bound.
        lt: Exclusive upper bound.
        le: Inclusive upper bound.
        finite: Whether infinities are refused.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    finite: bool = True

    def __contains__(self, value: float) -> bool:
        return (
            not math.isnan(value)
            and (math.isfinite(value) or not self.finite)
            and (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        """Return the range in words, to follow "it must be"."""
        low = self.ge if self.gt is None else self.gt
        high = self.le if self.lt is None else self.lt
        if low is not None and high is not None:
            brackets = "[" if self.gt is None else "(", "]" if self.lt is None else ")"
            return f"in {brackets[0]}{low:g}, {high:g}{brackets[1]}"
        if low is not None:
            if self.gt == 0:
                return "positive and finite" if self.finite else "positive"
            return f"above {low:g}" if self.ge is None else f"at least {low:g}"
        if high is not None:
            return f"below {high:g}" if self.le is None else f"at most {high:g}"
        return "finite" if self.finite else "a number"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        bounds = {name: getattr(self, name) for name in ("gt", "ge", "lt", "le")}
        schema = {**handler(source), **{k: v for k, v in bounds.items() if v is not None}}
        return {**schema, "allow_inf_nan": not self.finite} if source is float else schema


Positive = Annotated[float, Range(gt=0)]
"""A positive, finite number."""
NotNegative = Annotated[float, Range(ge=0)]
"""A finite number, 0 or more."""
Share = Annotated[float, Range(ge=0, le=1)]
"""A number from 0 to 1."""
Decay = Annotated[float, Range(ge=0, lt=1)]
"""A number from 0 to less than 1."""
Count = Annotated[int, Range(ge=1)]
"""A whole number, at least 1."""
CountOrZero = Annotated[int, Range(ge=0)]
"""A whole number, at least 0."""


def check_ranges(owner: Any, options: Mapping[str, Any]) -> None:
    """Raise unless options are of the type and in the range that their annotations state.

    Args:
        owner: The dataclass, class or function that takes the options. Options of a class are
            parameters of its constructor or of those of its bases.
        options: Options by name; one without a `Range` is not checked.

    Raises:
        ConfigurationError: The message names the option, the value and the range.
    """
    known = _bounds_of(owner)
    for name, value in options.items():
        bounds = known.get(name)
        if bounds is None or (value is None and bounds.optional):
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (bounds.whole and not isinstance(value, int)):
            kind = "whole number" if bounds.whole else "number"
            raise ConfigurationError(f"{name}={value!r}; it must be a {kind}.")
        if value not in bounds.range:
            raise ConfigurationError(f"{name}={value!r}; it must be {bounds.range}.")


def check_fields(settings: Any) -> None:
    """Raise unless the fields of a dataclass are in range; see `check_ranges`."""
    names = (field.name for field in dataclasses.fields(settings))
    owner = type(settings)
    check_ranges(owner, {name: getattr(settings, name) for name in names})


class _Bounds(NamedTuple):
    whole: bool
    range: Range
    optional: bool


@cache
def _bounds_of(owner: Any) -> dict[str, _Bounds]:
    if not isinstance(owner, type):
        return _bounded(_hints(owner))
    found: dict[str, _Bounds] = {}
    for base in reversed(owner.__mro__):
        if dataclasses.is_dataclass(base):  # a field of another type in a subclass keeps its range
            found |= _bounded(_hints(base))
        elif "__init__" in vars(base) and base is not object:
            hints = _hints(vars(base)["__init__"])
            found = {name: each for name, each in found.items() if name not in hints}
            found |= _bounded(hints)
    return found


def _bounded(hints: Mapping[str, Any]) -> dict[str, _Bounds]:
    found = ((name, _bounds(hint)) for name, hint in hints.items())
    return {name: bounds for name, bounds in found if bounds is not None}


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return get_type_hints(owner, include_extras=True)
    except (AttributeError, NameError, TypeError):  # built in, or of a TYPE_CHECKING import
        return {}


def _bounds(hint: Any) -> _Bounds | None:
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        for each in getattr(choice, "__metadata__", ()):
            if isinstance(each, Range):
                return _Bounds(choice.__origin__ is int, each, NoneType in choices)
    return None
