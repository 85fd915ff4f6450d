"""Construct objects from names and options, checked against signatures.

`bind` checks the names and types of options and constructs the objects nested in them; the `Bound`
it returns is called with the arguments that the library supplies, such as a problem. The annotation
of a parameter determines what its option may be: for a reward, a moderator, a target or a list of
them, the file has a name or a section::

    sum:
      - harm: {of: response}
      - attack_nll: {under: baseline}
        weight: -0.1
"""

from __future__ import annotations

import datetime
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Protocol, TypeGuard, Union, get_args, get_origin

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from astra_rl.config.section import SectionWithType
from astra_rl.config.signatures import (
    annotations_of,
    check_positional_only,
    parameters_of,
    signature_of,
)
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Exchange
from astra_rl.errors import AstraError, ConfigurationError, did_you_mean
from astra_rl.infra.importing import describe_raised
from astra_rl.infra.validation import describe_parts, validate_as_json
from astra_rl.moderators.completer import Completer
from astra_rl.rewards import REWARDS, FunctionTerm, Limit, RewardPart
from astra_rl.targets.base import Target


class Context(Protocol):
    """Constructs moderators and targets that are given as options."""

    def moderator(self, where: str, value: Any) -> Moderator[Any, Any]:
        """Return a moderator, from its name or its section."""

    def target(self, where: str, value: Any) -> Target:
        """Return a target, from its name or its section."""


@dataclass(frozen=True)
class Bound:
    """A class or function with checked options, ready to be called.

    Attributes:
        where: Place in the configuration, for messages.
        factory: The class or function to call.
        options: Its keyword arguments; nested parts are constructed.
        name: The name that a configuration gives it; empty if none does.
    """

    where: str
    factory: Any
    options: Mapping[str, Any]
    name: str = ""

    def __call__(self, *arguments: Any, **supplied: Any) -> Any:
        """Call the factory.

        Args:
            arguments: Positional arguments that the library supplies.
            supplied: Keyword arguments that it supplies besides the options.

        Raises:
            ConfigurationError: An option is out of range, or a class or function that is not the
                library's raised any exception.
        """
        with self._errors_placed():
            return self.factory(*arguments, **self.options, **supplied)

    def check(self, **supplied: Any) -> None:
        """Let the class check its options, see ``check_options``; it is not constructed.

        Args:
            supplied: Arguments that the library supplies.

        Raises:
            ConfigurationError: An option is out of range, or excludes another.
        """
        with self._errors_placed():
            self.factory.check_options(**supplied, **self.settings())

    @contextmanager
    def _errors_placed(self) -> Iterator[None]:
        """Add the place in the configuration to errors of the class or function."""
        try:
            yield
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.where}: {error}") from error
        except AstraError:
            raise
        except Exception as error:
            if _is_of_library(self.factory):
                if isinstance(error, TypeError):
                    raise ConfigurationError(f"{self.where}: {error}.") from error
                raise
            raise ConfigurationError(f"{self.where}: {describe_raised(error)}.") from error

    def settings(self) -> dict[str, Any]:
        """Return the options together with the defaults of those that are not given."""
        defaults = {
            name: each.default
            for name, each in parameters_of(self.factory).items()
            if each.default is not inspect.Parameter.empty
        }
        return {**defaults, **self.options}


def build(where: str, factory: Callable[..., Any], options: Any, context: Context) -> Any:
    """Call a class or function with options from a configuration file.

    Raises:
        ConfigurationError: As `bind` and `Bound.__call__`.
    """
    return bind(where, factory, options, context)()


def bind(
    where: str,
    factory: Callable[..., Any],
    options: Any,
    context: Context,
    *,
    supplied: int = 0,
    places: Mapping[str, str] | None = None,
    advice: str = "",
) -> Bound:
    """Check options against the signature of a class or function, and construct nested objects.

    Types are those of JSON: ``"no"`` is not a boolean and ``"5"`` is not a number. An option
    without an annotation, or whose type YAML cannot represent, is passed on unchanged.

    Args:
        where: Place in the configuration, for messages.
        factory: The class or function.
        options: By name; a list stands for the first option.
        context: Constructs moderators and targets.
        supplied: Number of leading positional arguments that the library supplies.
        places: Places of the options that are not under `where`, by name.
        advice: What to do about an unknown option, for the message.

    Raises:
        ConfigurationError: An unknown or missing option, or a value of another type.
    """
    parameters = parameters_of(factory, supplied=supplied)
    is_list = isinstance(options, list) and bool(parameters)
    if is_list:
        options = {next(iter(parameters)): options}
    given = as_section(where, options or {})
    known = {name: each for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD}
    open_ended = len(known) < len(parameters)
    check_positional_only(where, factory, supplied)
    hints = annotations_of(factory)
    converted = {}
    for name, value in given.items():
        place = where if is_list else (places or {}).get(name, f"{where}.{name}")
        if name not in known and not open_ended:
            listed = f"Known: {', '.join(known)}." if known else "It takes no options."
            raise ConfigurationError(
                f"{place}: unknown key.{did_you_mean(str(name), known)} {listed}{advice}"
            )
        converted[str(name)] = _convert(hints.get(name, Any), value, place, context)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in given:
            raise ConfigurationError(f"{where}.{name}: missing; it must be given.")
    return Bound(where, factory, converted)


def bind_section(
    where: str,
    section: SectionWithType,
    context: Context,
    *,
    base: type[Any] | None = None,
    supplied: int = 0,
    advice: str = "",
) -> Bound:
    """Check a section that names a class or function and its options; see `bind`.

    Args:
        where: Place of the section in the configuration, for messages.
        section: The section.
        context: Constructs moderators and targets.
        base: Class that the named class must be a subclass of; None allows any.
        supplied: Number of leading positional arguments that the library supplies.
        advice: What to do about an unknown option, for the message.

    Raises:
        ConfigurationError: The class cannot be imported or is no subclass of `base`, an option is
            unknown or missing, or a value is of another type.
    """
    try:
        factory = section.factory()
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}.type: {error}") from error
    if base is not None and not _is(factory, base):
        raise ConfigurationError(
            f"{where}.type: {section.type!r} given; it must be a subclass of {base.__name__}."
        )
    own = section.arguments_in_section()
    bound = bind(
        f"{where}.options",
        factory,
        {**own, **section.options},
        context,
        supplied=supplied,
        places={name: f"{where}.{name}" for name in own},
        advice=advice,
    )
    return replace(bound, name=section.type)


def _is_of_library(factory: Any) -> bool:
    return str(getattr(factory, "__module__", "")).startswith("astra_rl.")


def build_reward_part(where: str, spec: Any, context: Context) -> RewardPart:
    """Construct a reward term, or a combination of them.

    Args:
        where: Place in the configuration, for messages.
        spec: A name of `astra_rl.rewards.REWARDS`, ``"package.module:Name"``, or a mapping of one
            such name to its options.
        context: Constructs moderators and targets.

    Raises:
        ConfigurationError: An unknown name or option, or a value out of range.
    """
    part, weight = _weighted_part(where, spec, context)
    if weight is not None:
        raise ConfigurationError(f"{where}: weight is for the parts of a sum.")
    return part


def _weighted_part(where: str, spec: Any, context: Context) -> tuple[RewardPart, float | None]:
    entries = {spec: {}} if isinstance(spec, str) else as_section(where, spec)
    weight, name = entries.pop("weight", None), entries.pop("name", None)
    if len(entries) != 1:
        given = sorted(map(str, entries)) or "nothing"
        raise ConfigurationError(
            f"{where}: {given} given; name one part and its options, for "
            "instance {harm: {of: response}}."
        )
    ((kind, options),) = entries.items()
    place = f"{where}.{kind}"
    try:
        factory = REWARDS.load(kind)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from error
    part = (
        FunctionTerm(factory)
        if not options and _is_term(factory)
        else build(place, factory, options, context)
    )
    if not isinstance(part, RewardPart):
        raise ConfigurationError(
            f"{place}: {type(part).__name__} is not a RewardPart. Name a class or function that "
            "returns one."
        )
    if name is not None:
        part.name = check_type(f"{where}.name", str, name)
    if weight is not None:
        check_type(f"{where}.weight", float, weight)
    return part, weight


def _is_term(factory: Any) -> TypeGuard[Callable[[Sequence[Exchange]], Sequence[float]]]:
    """Whether a function computes a reward term; one that returns a part constructs it instead."""
    if not inspect.isfunction(factory):
        return False
    parameters = signature_of(factory).parameters.values()
    hints = annotations_of(factory)
    required = [each.name for each in parameters if each.default is each.empty]
    returned = hints.get("return")
    makes_part = isinstance(returned, type) and issubclass(returned, RewardPart)
    return len(required) == 1 and not makes_part and not _is(hints.get(required[0]), RewardPart)


def _convert(hint: Any, value: Any, where: str, context: Context) -> Any:
    """Convert a value of a file to the type of a parameter; nested objects are constructed."""
    choices = _choices(hint)
    if value is None and NoneType in choices:
        return None
    for choice in choices:
        kind, inner = get_origin(choice) or choice, get_args(choice)
        if kind is Mapping and _is(inner[0], RewardPart):
            pairs = [
                _weighted_part(f"{where}[{index}]", item, context)
                for index, item in enumerate(_as_list(where, value))
            ]
            return {part: 1.0 if weight is None else weight for part, weight in pairs}
        if kind is Sequence and _names(inner[0], RewardPart | Limit | Target):
            return [
                _convert(inner[0], item, f"{where}[{index}]", context)
                for index, item in enumerate(_as_list(where, value))
            ]
        if _is(kind, RewardPart):
            part = build_reward_part(where, value, context)
            if not isinstance(part, kind):
                raise ConfigurationError(f"{where}: {value!r} is not a {kind.__name__}.")
            return part
        if _is(kind, Limit):
            return build(where, kind, value, context)
        if _is(kind, Target):
            return context.target(where, value)
        if _is(kind, Moderator):
            return context.moderator(where, value)
        if kind is Completer:
            return _completer(where, value, context)
    if any(get_origin(choice) is Callable for choice in choices) and not callable(value):
        if str not in choices:
            raise ConfigurationError(
                f"{where}: a function cannot be given in a configuration file; use Python."
            )
        return check_type(where, str, value)
    return check_type(where, hint, value)


def _completer(where: str, value: Any, context: Context) -> Any:
    """Return a function that answers chats: a target, or a function given in Python."""
    if callable(value):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{where}: {value!r} given; write a section of a target, with type and options."
        )
    target = context.target(where, value)
    if not callable(target):
        raise ConfigurationError(f"{where}: {type(target).__name__} cannot answer chats.")
    return target


def check_type(where: str, hint: Any, value: Any) -> Any:
    """Return a value after checking its type; a list for a tuple is converted.

    Raises:
        ConfigurationError: It is of another type.
    """
    if isinstance(value, float) and math.isnan(value):
        raise ConfigurationError(f"{where}: nan given; it must be a number.")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
        return value  # a type that YAML cannot represent
    try:
        checked = validate_as_json(adapter, value)
    except ValidationError as error:
        raise ConfigurationError(describe_parts(where, value, error.errors())) from error
    except (TypeError, ValueError):
        if isinstance(value, datetime.date):  # which YAML makes of 2026-01-01
            raise ConfigurationError(
                f"{where}: {value} given, which YAML reads as a date; write text in quotes."
            ) from None
        return value  # an object that was given in Python
    return checked if isinstance(value, list) and isinstance(checked, tuple) else value


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union without their metadata."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(get_args(each)[0] if get_origin(each) is Annotated else each for each in members)


def _names(hint: Any, wanted: Any) -> bool:
    """Whether a type, or a member of a union, is a subclass of `wanted`."""
    return any(_is(get_origin(choice) or choice, wanted) for choice in _choices(hint))


def _is(kind: Any, wanted: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, wanted)


def as_section(where: str, value: Any) -> dict[Any, Any]:
    """Return a mapping as a new dict.

    Raises:
        ConfigurationError: It is not a mapping.
    """
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where}: {value!r} given; write names and values here.")
    return dict(value)


def _as_list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{where}: {value!r} given; write a list here.")
    return value
