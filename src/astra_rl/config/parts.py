"""From what a configuration file says about rewards and environments to objects.

A part is the name of one of `astra_rl.rewards.REWARDS`, or a mapping of one such name to its
options::

    sum:
      - harm: {of: response}
      - attack_nll: {under: baseline}
        weight: -0.1

What an option takes is read off the signature: where a class wants another part, a moderator or a
list of them, the file says it in the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.rewards import REWARDS, Limit, RewardPart
from astra_rl.rewards.terms import recording_response_harm
from astra_rl.targets.base import Target


@dataclass(frozen=True)
class Makers:
    """Makes what parts of a reward ask for, of the place in the file and what stands there.

    Attributes:
        moderator: Makes a moderator.
        target: Makes a target besides that of the run.
    """

    moderator: Callable[[str, Any], Moderator[Any, Any]]
    target: Callable[[str, Any], Target]


def make_part(where: str, spec: Any, make: Makers) -> RewardPart:
    """Make a part of a reward.

    Args:
        where: The place in the file, for messages.
        spec: What stands there.
        make: Makes the moderators and targets that parts ask for.

    Raises:
        ConfigurationError: An unknown name or option, or a value out of range, with its place.
    """
    part, weight = _make_weighted(where, spec, make)
    if weight is not None:
        raise ConfigurationError(f"{where}: weight is for the parts of a sum.")
    return part


def make_reward(spec: Any, make: Makers) -> RewardPart:
    """Make the reward of a run, which records also whether the target failed; see `make_part`."""
    return recording_response_harm(make_part("reward", spec, make))


def _make_weighted(where: str, spec: Any, make: Makers) -> tuple[RewardPart, float | None]:
    entries = {spec: {}} if isinstance(spec, str) else _mapping(where, spec)
    weight, name = entries.pop("weight", None), entries.pop("name", None)
    if len(entries) != 1:
        given = sorted(map(str, entries)) or "nothing"
        raise ConfigurationError(
            f"{where}: {given} given; name one part and its options, for "
            "instance {harm: {of: response}}."
        )
    ((kind, options),) = entries.items()
    if kind not in REWARDS:
        raise ConfigurationError(
            f"{where}.{kind}: unknown part of a reward.{did_you_mean(str(kind), REWARDS)} "
            f"Known: {', '.join(REWARDS)}."
        )
    part = construct(f"{where}.{kind}", REWARDS[kind], options, make)
    if name is not None:
        part.name = str(name)
    if weight is not None:
        weight = _plain((float,), float, weight, f"{where}.weight")
    return part, weight


def construct(
    where: str,
    factory: Callable[..., Any],
    options: Any,
    make: Makers,
    *arguments: Any,
) -> Any:
    """Call a class or function with options from a file.

    A list stands for the first option.

    Raises:
        ConfigurationError: An unknown or missing option, or one that the factory refuses.
    """
    parameters = list(inspect.signature(factory).parameters)[len(arguments) :]
    listed = isinstance(options, list)
    if listed and parameters:
        options = {parameters[0]: options}
    options = _mapping(where, options or {})
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    given = {}
    for name, value in options.items():
        if name not in parameters:
            raise ConfigurationError(
                f"{where}.{name}: unknown key.{did_you_mean(str(name), parameters)} "
                f"Known: {', '.join(parameters)}."
            )
        place = where if listed else f"{where}.{name}"
        given[name] = _convert(hints.get(name, Any), value, place, make)
    try:
        return factory(*arguments, **given)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {error}.") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str, make: Makers) -> Any:
    """Turn what a file says into what an option of this type takes."""
    choices = _choices(hint)
    if value is None and NoneType in choices:
        return None
    for choice in choices:
        kind, inner = get_origin(choice) or choice, get_args(choice)
        if kind is Mapping and _is(inner[0], RewardPart):
            pairs = [
                _make_weighted(f"{where}[{index}]", item, make)
                for index, item in enumerate(_list(where, value))
            ]
            return {part: 1.0 if weight is None else weight for part, weight in pairs}
        if kind is Sequence and _names(inner[0], RewardPart | Limit | Target):
            return [
                _convert(inner[0], item, f"{where}[{index}]", make)
                for index, item in enumerate(_list(where, value))
            ]
        if _is(kind, RewardPart):
            part = make_part(where, value, make)
            if not isinstance(part, kind):
                raise ConfigurationError(f"{where}: {value!r} is not a {kind.__name__}.")
            return part
        if _is(kind, Limit):
            return construct(where, kind, value, make)
        if _is(kind, Target):
            return make.target(where, value)
        if _is(kind, Moderator):
            return make.moderator(where, value)
    return _plain(choices, hint, value, where)


def _plain(choices: Sequence[Any], hint: Any, value: Any, where: str) -> Any:
    """Check a number, a text or a list of them."""
    if any(get_origin(choice) is Callable for choice in choices):
        if str in choices and isinstance(value, str):
            return value
        raise ConfigurationError(f"{where}: a function cannot be given in a file; use Python.")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ConfigurationError(
            f"{where}: {error.errors()[0]['msg']} (it is {value!r})."
        ) from error


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _names(hint: Any, wanted: Any) -> bool:
    """Whether a type, or one of those it is a union of, is one that is made."""
    return any(_is(get_origin(choice) or choice, wanted) for choice in _choices(hint))


def _is(kind: Any, wanted: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, wanted)


def _mapping(where: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where}: {value!r} given; write names and values here.")
    return dict(value)


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{where}: {value!r} given; write a list here.")
    return value
