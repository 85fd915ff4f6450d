"""YAML has the numbers of YAML 1.2, and its tags construct nothing."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from astra_rl.datasets import yaml_text
from astra_rl.datasets.yaml_text import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1E+3", -1000.0),
        (".5e2", 50.0),
        ("1.5e3", 1500.0),
        ("'1e-3'", "1e-3"),
        ("1e3x", "1e3x"),
        ("e5", "e5"),
    ],
)
def test_a_number_with_an_exponent_is_a_number(text: str, value: Any) -> None:
    assert parse_yaml(text) == value
    assert parse_yaml(dump_yaml(value)) == value


def test_loader_and_dumper_extend_the_safe_ones() -> None:
    """`forbidden` of test_no_code_from_data looks for calls by name, and sees neither of these."""
    assert issubclass(yaml_text._Loader, yaml.SafeLoader)
    assert issubclass(yaml_text._Dumper, yaml.SafeDumper)
    own, safe = yaml_text._Loader.yaml_constructors, yaml.SafeLoader.yaml_constructors
    assert own.keys() == safe.keys()
    numbers = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
    assert {tag for tag in own if own[tag] is not safe[tag]} == numbers
    for tag in ("object:os.system", "object/apply:os.getcwd", "name:os.getcwd"):
        with pytest.raises(yaml.YAMLError):
            parse_yaml(f"a: !!python/{tag} []")


@pytest.mark.parametrize(
    ("text", "value"), [("0123", 123), ("-017", -17), ("12:30", "12:30"), ("1_000", 1000)]
)
def test_whole_numbers_are_decimal(text: str, value: Any) -> None:
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)
    assert parse_yaml(dump_yaml(value)) == value


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "a: {b: 1, 'b': 2}", "a: &a [*a]"])
def test_repeated_keys_and_values_that_contain_themselves_are_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"given twice|recursive"):
        parse_yaml(text)


def test_a_merged_key_may_be_overridden() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}")["b"] == {"x": 3, "y": 2}
