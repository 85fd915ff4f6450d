"""Messages of validation errors: place, value, and what is allowed."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

_ALLOWED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of at most 18 digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "none_required": "null",
    "callable_type": "a function, which can only be given in Python",
    "missing": "a longer list",  # of a list of fixed length; a missing key has its own message
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "iterable_type"), "a list"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"),
        "a section of names and values",
    ),
}
"""What a value must be, by pydantic's type of error."""
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
    "too_short": ("min_length", "a list of at least"),
    "too_long": ("max_length", "a list of at most"),
    "literal_error": ("expected", "one of"),
    "enum": ("expected", "one of"),
}


def describe_parts(where: str, value: Any, errors: Sequence[Mapping[str, Any]]) -> str:
    """Return one message for the errors of a value or of its parts, with the place of the part.

    Of the members of a union, the one that fits best is described: the errors of its parts are the
    deepest.

    Args:
        where: Place of the value in the configuration.
        value: What was given there.
        errors: As `pydantic.ValidationError.errors` returns them.
    """
    places: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for each in errors:
        places.setdefault(place_of(each, value), []).append(each)
    place = max(places, key=len)
    for part in place:
        value = value[part]
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    return describe(where, value, places[place])


def place_of(error: Mapping[str, Any], values: Any) -> tuple[Any, ...]:
    """Return where an error is among the values, without pydantic's names of union members."""
    place: list[Any] = []
    names_key = error["type"] in ("missing", "extra_forbidden", "unexpected_keyword_argument")
    for index, part in enumerate(error["loc"]):
        is_last = index == len(error["loc"]) - 1
        inner = None
        if (isinstance(values, Mapping) and part in values) or (
            isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        ):
            inner = values[part]
        elif not (is_last and names_key and isinstance(part, str)):
            continue  # a name of pydantic's, or an item that a list is too short for
        place.append(part)
        values = inner
    return tuple(place)


def describe(where: str, value: Any, errors: Sequence[Mapping[str, Any]]) -> str:
    """Return one message for the errors of one value.

    Several errors are those of the members of a union; the message lists all allowed types.

    Args:
        where: Place in the configuration.
        value: What was given there.
        errors: As `pydantic.ValidationError.errors` returns them.
    """
    own = [each for each in errors if each["type"] == "value_error"]
    if own:  # raised by a validator of this library, with a message of its own
        message = str(own[0]["msg"]).removeprefix("Value error, ")
        place = f"{where}: " if where else ""  # the message of a whole names its parts
        return f"{place}{message}" if message.endswith((".", "?")) else f"{place}{message}."
    kinds = dict.fromkeys(map(allowed, errors))
    hint = (
        " YAML reads yes, no, on and off without quotes as true or false."
        if isinstance(value, bool) and any("text" in each or "'" in each for each in kinds)
        else ""
    )
    return f"{where}: {_shown(value)} given; it must be {' or '.join(kinds)}.{hint}"


def _shown(value: Any) -> str:
    """Return a value as it is written in YAML, where Python writes it in another way."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value) if isinstance(value, datetime.date) else repr(value)


def allowed(error: Mapping[str, Any]) -> str:
    """Return what a value must be, without the value."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        if isinstance(bound, float) and bound.is_integer() and abs(bound) < 1e16:
            bound = int(bound)
        return f"{words} {bound}"
    if kind in _ALLOWED:
        return _ALLOWED[kind]
    return str(error["msg"]).removeprefix("Input should be ")


def validate_as_json(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Validate a value by the types of JSON: "5" is not a number; a list is accepted as a tuple.

    Raises:
        ValidationError: It is of another type.
        TypeError: It contains an object that JSON cannot represent.
        ValueError: It contains a circular reference.
    """
    return adapter.validate_json(json.dumps(value), strict=True)


__all__ = [
    "ValidationError",
    "allowed",
    "describe",
    "describe_parts",
    "place_of",
    "validate_as_json",
]
