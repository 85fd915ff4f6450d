"""Import objects by path, as a configuration names them."""

from __future__ import annotations

import importlib
from typing import Any

from astra_rl.errors import AstraError, ConfigurationError


def load_object(path: str) -> Any:
    """Import the object at ``"package.module:name"``. Importing runs the module.

    Raises:
        ConfigurationError: The module or the name in it does not exist.
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
            f"cannot import {path!r}: {error}. The module must be on Python's search path "
            "(PYTHONPATH, or an installed package)."
        ) from error


def is_path(path: str) -> bool:
    """Whether a text has the form ``"package.module:name"``."""
    module, colon, name = path.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), name])
