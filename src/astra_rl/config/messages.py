"""Messages of validation errors: place, value, and what is allowed."""

from __future__ import annotations

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
    "too_short": "a longer list",
    "too_long": "a shorter list",
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
    "literal_error": ("expected", "one of"),
}


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
        return f"{where}: {str(own[0]['msg']).removeprefix('Value error, ').rstrip('.')}."
    allowed = dict.fromkeys(map(_allowed, errors))
    return f"{where}: {value!r} given; it must be {' or '.join(allowed)}."


def _allowed(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        return f"{words} {bound:g}" if isinstance(bound, int | float) else f"{words} {bound}"
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


__all__ = ["ValidationError", "describe", "validate_as_json"]
