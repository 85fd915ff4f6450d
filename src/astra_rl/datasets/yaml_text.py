"""Read and write YAML: plain types only, with the numbers of YAML 1.2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
"""A number with an exponent, as YAML 1.2 and JSON write it; YAML 1.1 needs a dot and a sign."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader (YAML 1.1), which also reads 1e-3 as a number."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes a text that `_Loader` would read as a number."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Parse YAML to plain Python types; tags never construct objects.

    Raises:
        YAMLError: The text is not valid YAML. Other exceptions of the parser, for example for an
            invalid date or too deep nesting, are converted to it.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError:
        raise
    except Exception as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
    finally:
        loader.dispose()


def has_at_most(value: Any, most: int) -> bool:
    """Whether YAML data has at most so many values; aliases may multiply few lines to billions."""
    waiting = [value]
    while waiting and most >= 0:
        most -= 1
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
        if len(waiting) > most:
            return False
    return most >= 0


def dump_yaml(value: Any) -> str:
    """Return a value of plain types as YAML; `parse_yaml` returns it again."""
    text: str = yaml.dump_all([value], Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
