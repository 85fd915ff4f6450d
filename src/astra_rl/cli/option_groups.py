"""Option groups: several options of a command as one parameter, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import wraps
from inspect import Parameter
from typing import Any, get_type_hints


class OptionGroup:
    """Base of dataclasses whose fields are options that several commands share.

    Every field is annotated with ``Annotated[type, typer.Option(...)]`` and has a default.
    """


def expand_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for Typer that has the fields of its option groups as options.

    Typer reads one option per parameter. In the returned function, each parameter that is annotated
    with a subclass of `OptionGroup` is replaced by one parameter per field of that class, after the
    others; `command` receives an instance.

    Args:
        command: The function of a command; its annotations must be importable at run time.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}
    own = [
        each.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[each.name])
        for each in inspect.signature(command).parameters.values()
        if each.name not in groups
    ]
    expanded = [*own, *(each for group in groups.values() for each in _parameters_of(group))]

    @wraps(command)
    def run(**values: Any) -> None:
        arguments = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **arguments)

    del run.__wrapped__  # Typer would read the signature of the inner function
    run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in expanded}
    return run


def _is_group(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, OptionGroup)


def _parameters_of(group: Any) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=_default_of(field),
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def _default_of(field: Field[Any]) -> Any:
    if field.default is MISSING:
        raise TypeError(f"option {field.name!r} of a group needs a default")
    return field.default
