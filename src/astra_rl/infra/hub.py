"""Calls of the Hugging Face Hub, without telemetry."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Context in which the libraries of the hub send what was asked for, and nothing else.

    Otherwise huggingface_hub names the program that runs it, and asks the hub for the list of
    programs to know it by. It is what HF_HUB_DISABLE_TELEMETRY=1 does for a process.
    """
    import huggingface_hub.constants

    constants: Any = huggingface_hub.constants
    before, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


__all__ = ["without_telemetry"]
