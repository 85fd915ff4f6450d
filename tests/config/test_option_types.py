"""Options of a file that are of another type are named before anything is made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pytest

from astra_rl.config.construct import bind
from astra_rl.config.parts import PartResolver, remote_target, resolve_moderator
from astra_rl.config.schema import ModeratorConfig, TargetConfig
from astra_rl.errors import ConfigurationError

if TYPE_CHECKING:
    from nowhere import Unknown

URL = "http://127.0.0.1:9/v1"


class Base:
    def __init__(self, size: int, names: tuple[str, ...] = ()) -> None: ...


class Made(Base):
    def __init__(self, kind: Literal["a", "b"], share: float = 1.0, **more: Any) -> None: ...


def of_checkers_only(size: Unknown) -> None: ...


def takes(
    first: str, places: Sequence[int] = (), extra: Mapping[str, Any] | None = None
) -> None: ...


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (Made, {"kind": "a", "share": 1, "size": 3, "names": ["x", "y"]}),
        (takes, {"first": "x", "places": [1, 2], "extra": {"a": [None]}}),
        (partial(takes, "x"), {"extra": None}),
        (of_checkers_only, {"size": "unknown"}),
        (takes, {"first": object()}),  # from Python, not from a file
    ],
)
def test_what_fits_or_cannot_be_told_passes(factory: Any, options: dict[str, Any]) -> None:
    bind("here", factory, options, PartResolver())


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (Made, {"kind": "c"}, "here.kind: 'c' given; it must be one of 'a' or 'b'"),
        (Made, {"share": "1"}, "here.share: '1' given; it must be a number"),
        (Made, {"size": True}, "here.size: true given; it must be a whole number"),
        (Made, {"names": "xy"}, "here.names: 'xy' given; it must be a list"),
        (partial(takes, "x"), {"places": 5}, "here.places: 5 given; it must be a list"),
    ],
)
def test_another_type_is_refused_by_its_place(
    factory: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        bind("here", factory, options, PartResolver())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prices": {"input": "x"}},
            "target.options.prices.input: 'x' given; it must be a number",
        ),
        ({"stop": "END"}, "target.options.stop: 'END' given; it must be a list"),
        ({"extra": 5}, "target.options.extra"),
        ({"api_key_env": 5}, "target.options.api_key_env"),
        ({"base_url": 5}, "target.options.base_url"),
        ({"send_seed": "no"}, "target.options.send_seed: 'no' given; it must be true or false"),
        ({"extra": {"max_completion_tokens": -4}}, "extra.max_completion_tokens=-4"),
        ({"extra": {"n": "two"}}, "extra.n='two'"),
    ],
)
def test_no_option_of_a_target_is_a_traceback(options: dict[str, Any], message: str) -> None:
    section = TargetConfig(type="openai", options={"model": "m", "base_url": URL, **options})
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        remote_target(section)


def test_an_application_that_writes_no_whole_number_of_tokens_is_refused() -> None:
    section = TargetConfig(type="astra_rl.testing:echo", options={"max_tokens": "many"})
    with pytest.raises(ConfigurationError, match=r"target\.options\.max_tokens"):
        remote_target(section)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("openai_moderation", {"timeout": "x"}, "moderator.options.timeout"),
        ("openai_moderation", {"prices": {"input": "x"}}, "moderator.options.prices"),
        ("llm_judge", {"complete": "gpt"}, "moderator.options.complete: 'gpt' given; write a"),
    ],
)
def test_options_of_a_judge_are_checked_before_it_is_made(
    kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        resolve_moderator(ModeratorConfig(type=kind, options=options))
