"""Targets that are not in this process: endpoints, HTTP interfaces, functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_rl.core.importing import load_object
from astra_rl.targets.base import Target
from astra_rl.targets.calling import CallSettings
from astra_rl.targets.ledger import Budget, Ledger, Prices
from astra_rl.targets.reply_cache import ReplyCache

if TYPE_CHECKING:  # what `__getattr__` gives at run time, for type checkers and editors
    from astra_rl.targets.function import CallableTarget as CallableTarget
    from astra_rl.targets.http_api import HTTPTarget as HTTPTarget
    from astra_rl.targets.openai_endpoint import OpenAITarget as OpenAITarget
    from astra_rl.targets.remote import RemoteTarget as RemoteTarget

_CLASSES = {
    "CallableTarget": "function:CallableTarget",
    "HTTPTarget": "http_api:HTTPTarget",
    "OpenAITarget": "openai_endpoint:OpenAITarget",
    "RemoteTarget": "remote:RemoteTarget",
}

__all__ = [
    "Budget",
    "CallSettings",
    "CallableTarget",
    "HTTPTarget",
    "Ledger",
    "OpenAITarget",
    "Prices",
    "RemoteTarget",
    "ReplyCache",
    "Target",
]


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load_object(f"{__name__}.{_CLASSES[name]}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
