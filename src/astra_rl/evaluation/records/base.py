"""Types of the fields of attempt records."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from astra_rl.infra.unicode import well_formed


def _text(value: Any) -> Any:
    return well_formed(value) if isinstance(value, str) else value


def _finite(value: Any) -> Any:
    """Convert any kind of real number to float, and None if it is not finite."""
    if type(value) is float:  # most values; the test for other kinds is slow
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> Any:
    if type(value) is int:  # as in `_finite`
        return value
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if is_whole else value


MAX_COUNT = 2**53
"""Largest count in a record: floats and JavaScript are exact up to it, and SQLite can store it."""

Text = Annotated[str, BeforeValidator(_text)]
"""Text that can be encoded as UTF-8: lone surrogates become U+FFFD."""
_Float = Annotated[float, Field(strict=True)]
Number = Annotated[_Float | None, BeforeValidator(_finite)]
"""A number, or None where it is missing; NaN and infinities become None, text is refused."""
Fraction = Annotated[Annotated[_Float, Field(ge=0, le=1)] | None, BeforeValidator(_finite)]
"""A `Number` in [0, 1]."""
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT), BeforeValidator(_whole)]
"""An integer from 0 to `MAX_COUNT`."""
Flag = Annotated[bool, Field(strict=True)]
"""A boolean; numbers and text are refused."""


class Record(BaseModel):
    """Base of attempt records: immutable, without additional fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def content_digest(value: Sequence[Any] | Mapping[str, Any]) -> str:
    """Return a digest of JSON data; 16 hexadecimal digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
