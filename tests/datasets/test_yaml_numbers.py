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
    assert yaml_text._Loader.yaml_constructors is yaml.SafeLoader.yaml_constructors
    for tag in ("object:os.system", "object/apply:os.getcwd", "name:os.getcwd"):
        with pytest.raises(yaml.YAMLError):
            parse_yaml(f"a: !!python/{tag} []")
