"""Importing what a configuration names."""

from __future__ import annotations

import importlib
from typing import Any

from astra_rl.errors import AstraError, ConfigurationError


def load_object(path: str) -> Any:
    """Import what ``"package.module:name"`` stands for. This runs the module, as any import does.

    Raises:
        ConfigurationError: There is no such module, or nothing of this name in it.
    """
    module, _, name = path.partition(":")
    if not is_path(path):
        raise ConfigurationError(f"{path!r}; write it as 'package.module:name'.")
    try:
        return getattr(importlib.import_module(module), name)
    except AstraError:
        raise
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"cannot import {path!r}: {error}. It is looked for where Python looks for modules."
        ) from error


def is_path(path: str) -> bool:
    """Whether a text has the form ``"package.module:name"``."""
    module, colon, name = path.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), name])
