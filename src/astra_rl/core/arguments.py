"""The arguments that an object was constructed with."""

from __future__ import annotations

import inspect
from typing import Any, Self


class RecordsArguments:
    """Base of classes whose objects remember the arguments of their constructor.

    They are recorded before `__init__` runs, so a subclass needs no code for it, need not call
    ``super().__init__()``, and may call it with other arguments. A dataclass works as well.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments; `__init__` checks them."""
        self = super().__new__(cls)
        object.__setattr__(self, "_arguments", (args, kwargs))  # a dataclass may be frozen
        return self

    def constructor_arguments(self) -> dict[str, Any]:
        """Return all constructor arguments by parameter name, defaults included.

        The order in which they were given, and whether by position or by name, makes no difference.
        Keyword arguments that `__init__` collects (``**options``) are returned by their own names.
        """
        args, kwargs = self._arguments
        signature = inspect.signature(type(self).__init__)
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            # A class with a `__new__` of its own passed on other arguments: what `__init__` kept of
            # them are the attributes.
            kept = {name: value for name, value in vars(self).items() if name != "_arguments"}
            return {"args": args, **kwargs, **kept}
        bound.apply_defaults()
        found: dict[str, Any] = {}
        for index, parameter in enumerate(signature.parameters.values()):
            value = bound.arguments[parameter.name]
            if parameter.kind is parameter.VAR_KEYWORD:
                found.update(value)
            elif index > 0:  # not the object itself
                found[parameter.name] = value
        return found
