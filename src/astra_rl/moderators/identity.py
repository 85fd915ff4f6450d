"""The identity of a moderator: its class, its weights and its settings.

Records and calibrations name the moderator behind a score by it, so that only scores of the same
moderator are compared.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import CellType, FunctionType, MethodType
from typing import Any
from uuid import UUID

import numpy as np

from astra_rl.core.moderator import Moderator
from astra_rl.core.weights import fingerprint, weights_of

__all__ = ["Identity", "fingerprint", "identity_of", "weights_of"]

MAX_DEPTH = 8


@dataclass(frozen=True)
class Identity:
    """Identity of a moderator; the same in every process.

    Attributes:
        name: Its class; with its module unless it is one of this library.
        weights: Source and fingerprint of its model, for instance
            ``"meta-llama/Llama-Guard-3-8B@4f2c 9d41..."``; None if it has no model.
        settings: Hash of all settings that may change a score.
    """

    name: str
    weights: str | None
    settings: str

    def as_dict(self) -> dict[str, str | None]:
        """Return the three fields as JSON values."""
        return asdict(self)

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the three fields: moderators of one digest give the same scores."""
        return _hash(json.dumps(self.as_dict(), sort_keys=True))


def identity_of(moderator: Moderator[Any, Any]) -> Identity:
    """Return the identity of a moderator.

    It is made of `Moderator.identity_settings`, by default the arguments that the moderator was
    constructed with, and of `Moderator.identity_weights`. A wrapper has the identity of its
    `Moderator.identity_stands_for`.

    Settings are hashed by value and type: moderators by their identity, models by their weights,
    functions by their source, defaults and closure, tensors by their content. An object of another
    class counts by its class and, if it names one, its model; a moderator whose scores depend on
    more of it defines `identity_settings`.
    """
    inner = moderator.identity_stands_for
    if inner is not None:
        return identity_of(inner)
    settings = json.dumps(_described(moderator.identity_settings()), sort_keys=True)
    return Identity(_name(moderator), moderator.identity_weights(), _hash(settings))


def _name(moderator: object) -> str:
    kind = type(moderator)
    if kind.__module__.startswith("astra_rl."):
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def _described(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON values that are the same in every process.

    They contain no addresses, and sets are sorted.
    """
    if depth > MAX_DEPTH:  # a function may refer to itself
        return "..."
    import torch  # here: commands on finished runs read identities without it
    from torch import Tensor, nn

    describe = functools.partial(_described, depth=depth + 1)
    match value:
        case enum.Enum():
            return [*_where(type(value)), value.name]
        case None | bool() | int() | float() | str():
            return value
        case PurePath():
            return str(value)
        case Moderator():
            return identity_of(value).as_dict()
        case Mapping():
            return {_key(key): describe(item) for key, item in value.items()}
        case Sequence():
            return [describe(item) for item in value]
        case set() | frozenset():
            return sorted(map(describe, value), key=str)
        case re.Pattern():
            return ["re.Pattern", value.pattern, value.flags]
        case np.generic():
            return describe(value.item())
        case np.ndarray() if value.dtype.kind not in "biufc":  # text or objects
            return ["array", str(value.dtype), list(value.shape), describe(value.tolist())]
        case complex() | Decimal() | Fraction() | date() | time() | timedelta() | UUID():
            return [*_where(type(value)), repr(value)]
        case Tensor() | np.ndarray():
            content = torch.as_tensor(value).detach().cpu()
            return [
                "tensor",
                str(content.dtype),
                list(content.shape),
                _hash(repr(content.tolist())),
            ]
        case nn.Module():
            return [*_where(type(value)), fingerprint(value)]
        case functools.partial():
            return describe([value.func, value.args, value.keywords])
        case MethodType():
            return ["method", describe(value.__func__), describe(value.__self__)]
        case FunctionType():
            return [*_where(value), *describe(_function_parts(value))]
        case type():
            return ["class", *_where(value)]
    if inspect.isroutine(value):  # written in C
        return _where(value)
    if is_dataclass(value):
        return [
            *_where(type(value)),
            {f.name: describe(getattr(value, f.name)) for f in fields(value)},
        ]
    weights = weights_of(value)
    return [*_where(type(value)), *([] if weights is None else [weights])]


def _where(value: Any) -> list[str | None]:
    return [getattr(value, "__module__", None), value.__qualname__]  # some in C have no module


def _key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(_described(key), sort_keys=True)


def _function_parts(function: FunctionType) -> list[Any]:
    """Return what determines a function's behaviour: its source, defaults and closure."""
    try:
        code: Any = inspect.getsource(function)
    except (OSError, TypeError):  # defined interactively, or by exec
        code = function.__code__.co_code.hex()
    if code.count("lambda") > 1:  # the line has several functions: which one is told by its columns
        code = [code, *_columns(function)]
    held = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    keyword_defaults = [function.__kwdefaults__] if function.__kwdefaults__ else []
    return [code, function.__defaults__, held, *keyword_defaults]


def _columns(function: FunctionType) -> list[Any]:
    """Return the place of a function's body relative to its first line, and its arguments."""
    first = function.__code__.co_firstlineno
    places = [
        (line - first, column)
        for line, _, column, _ in function.__code__.co_positions()
        if line is not None and column is not None and (line > first or column > 0)
    ]
    return [min(places, default=None), max(places, default=None), function.__code__.co_varnames]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
