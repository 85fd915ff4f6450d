"""Read and write YAML: plain types only, with the numbers of YAML 1.2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
"""A number with an exponent, as YAML 1.2 and JSON write it; YAML 1.1 needs a dot and a sign."""


_WHOLE = re.compile(r"[-+]?[0-9]+$")
"""A whole number of YAML 1.2: 0123 is 123, which YAML 1.1 reads as octal."""
_SEXAGESIMAL = re.compile(r"[-+]?[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?$")
"""12:30, which YAML 1.1 reads as a number to base 60 and YAML 1.2 as text."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader (YAML 1.1) with the numbers of YAML 1.2; repeated keys are refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Return a mapping; a key that is written twice is an error."""
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = (key_node.tag, str(key_node.value))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def _number(self, node: Any) -> Any:
        text = self.construct_scalar(node)
        if _SEXAGESIMAL.match(text):
            return text
        if _WHOLE.match(text):
            return int(text)
        is_int = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes a text that `_Loader` would read as a number."""


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader._number)
for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Parse YAML to plain Python types; tags never construct objects.

    Raises:
        YAMLError: The text is not valid YAML. Other exceptions of the parser, for example for an
            invalid date or too deep nesting, are converted to it.
    """
    loader = _Loader(text)
    loader.deep_construct = True  # refuses a value that contains itself
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
