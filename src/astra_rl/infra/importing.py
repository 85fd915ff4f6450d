"""Import objects by path, as a configuration names them."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from astra_rl.errors import AstraError, ConfigurationError


def load_object(path: str) -> Any:
    """Import the object at ``"package.module:name"``. Importing runs the module.

    A module that is not on Python's search path may be in the current folder, which the command of
    an installed package does not search.

    Raises:
        ConfigurationError: The module or the name in it does not exist.
    """
    module, _, name = path.partition(":")
    if not is_path(path):
        raise ConfigurationError(f"{path!r}; write it as 'package.module:name'.")
    try:
        return getattr(_imported(module), name)
    except AstraError:
        raise
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"cannot import {path!r}: {error}. The module must be in the current folder "
            "or on Python's search path (PYTHONPATH, or an installed package)."
        ) from error
    except Exception as error:  # the module runs, and can raise anything
        raise ConfigurationError(f"cannot import {path!r}: {describe_raised(error)}.") from error


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        here = str(Path.cwd())
        if error.name != module.partition(".")[0] or here in sys.path:
            raise
        sys.path.append(here)  # last, so that nothing installed is replaced
        importlib.invalidate_caches()
        return importlib.import_module(module)


def describe_raised(error: Exception) -> str:
    """Return an exception of code that is not the library's, with the line that raised it."""
    told = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:  # a SyntaxError names its line itself
        return told
    return f"{told} ({frames[-1].filename}, line {frames[-1].lineno})"


def is_path(path: str) -> bool:
    """Whether a text has the form ``"package.module:name"``."""
    module, colon, name = path.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), name])
