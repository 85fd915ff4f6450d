"""Ranges in annotations: pydantic and `check_ranges` read the same statement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from astra_rl.errors import ConfigurationError
from astra_rl.infra.ranges import Count, Decay, Positive, Range, Share, check_fields, check_ranges
from astra_rl.infra.validation import validate_as_json


@dataclass
class Settings:
    rate: Positive = 1.0
    share: Share = 0.5
    decay: Decay = 0.0
    count: Count = 1
    clip: Annotated[float, Range(gt=0, finite=False)] | None = None
    free: Any = None

    def __post_init__(self) -> None:
        check_fields(self)


ADAPTER = TypeAdapter(Settings)
CASES = [
    ("rate", 1e-9, True), ("rate", 2, True), ("rate", 0, False), ("rate", math.inf, False),
    ("rate", math.nan, False), ("rate", True, False), ("rate", "1", False), ("rate", None, False),
    ("share", 0, True), ("share", 1, True), ("share", 1.01, False), ("share", -0.01, False),
    ("decay", 0.0, True), ("decay", 1.0, False), ("count", 1, True), ("count", 0, False),
    ("count", 1.5, False), ("clip", None, True), ("clip", math.inf, True), ("clip", 0.0, False),
    ("clip", math.nan, False), ("free", "anything", True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "allowed"), CASES)
def test_python_and_pydantic_agree(name: str, value: Any, allowed: bool) -> None:
    if allowed:
        assert Settings(**{name: value}) == validate_as_json(ADAPTER, {name: value})
        return
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}; it must be "):
        Settings(**{name: value})
    with pytest.raises(ValidationError) as caught:
        validate_as_json(ADAPTER, {name: value})
    assert caught.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Range(gt=0), "positive and finite"),
        (Range(ge=1), "at least 1"),
        (Range(ge=0, lt=1), "in [0, 1)"),
        (Range(gt=0, le=1), "in (0, 1]"),
        (Range(gt=1, finite=False), "above 1"),
        (Range(le=0), "at most 0"),
        (Range(lt=3), "below 3"),
        (Range(), "finite"),
    ],
)
def test_a_range_says_what_it_allows(given: Range, words: str) -> None:
    assert str(given) == words


def test_options_of_a_class_are_those_of_its_constructors() -> None:
    class Base:
        def __init__(self, *, gamma: Share = 1.0) -> None: ...

    class Own(Base):
        def __init__(self, *, size: Count = 1, **options: Any) -> None: ...

    class Other(Base):
        def __init__(self, *, gamma: float = 7.0) -> None: ...

    check_ranges(Own, {"size": 2, "gamma": 0.5, "unknown": -1})
    for wrong in ({"size": 0}, {"gamma": 1.5}):
        with pytest.raises(ConfigurationError, match="it must be"):
            check_ranges(Own, wrong)
    check_ranges(Other, {"gamma": 7.0})  # an option of its own, of another meaning


def test_a_subclass_that_changes_a_default_keeps_the_range() -> None:
    @dataclass
    class Mine(Settings):
        rate: float = 2.0

    with pytest.raises(ConfigurationError, match="rate=-1"):
        Mine(rate=-1)
