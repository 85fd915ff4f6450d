"""Judges of what was said: one module each, loaded when its class is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astra_rl.moderators.caching import CachedModerator
    from astra_rl.moderators.detoxify import DetoxifyModerator
    from astra_rl.moderators.function import FunctionModerator
    from astra_rl.moderators.hf_classifier import HFClassifierModerator
    from astra_rl.moderators.llama_guard import LlamaGuardModerator
    from astra_rl.moderators.profanity import ProfanityModerator
    from astra_rl.moderators.secret_leak import SecretLeakModerator

__all__ = [
    "CachedModerator",
    "DetoxifyModerator",
    "FunctionModerator",
    "HFClassifierModerator",
    "LlamaGuardModerator",
    "ProfanityModerator",
    "SecretLeakModerator",
]

_MODULES = {
    "CachedModerator": "caching",
    "DetoxifyModerator": "detoxify",
    "FunctionModerator": "function",
    "HFClassifierModerator": "hf_classifier",
    "LlamaGuardModerator": "llama_guard",
    "ProfanityModerator": "profanity",
    "SecretLeakModerator": "secret_leak",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
