"""Safe parsing of YAML text from untrusted files."""

from __future__ import annotations

from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """Parse YAML to plain Python types; tags never construct objects.

    Raises:
        YAMLError: The text is not valid YAML. Other exceptions of the parser, for example for an
            invalid date or too deep nesting, are converted to it.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise
    except Exception as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
