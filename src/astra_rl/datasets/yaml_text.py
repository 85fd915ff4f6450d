"""YAML that a person wrote, or that was damaged."""

from __future__ import annotations

from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """Return what YAML text says, in plain types: no object is ever made of a tag.

    Raises:
        YAMLError: It is no YAML. The parser itself raises whatever its parts do, for instance for
            a date that does not exist or for too many brackets.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise
    except Exception as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
