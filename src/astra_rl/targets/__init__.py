"""Black-box targets: endpoints, HTTP APIs and Python functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_rl.infra.lazy_names import load_name, modules_of

if TYPE_CHECKING:
    from astra_rl.targets.base import Target
    from astra_rl.targets.budget import Budget, Prices
    from astra_rl.targets.caller import CallSettings
    from astra_rl.targets.function import CallableTarget
    from astra_rl.targets.http_api import HTTPTarget
    from astra_rl.targets.ledger import Ledger
    from astra_rl.targets.openai_endpoint import OpenAITarget
    from astra_rl.targets.remote import RemoteTarget
    from astra_rl.targets.reply_cache import ReplyCache

_MODULES = modules_of(  # not imported here: the command line needs `Budget` alone to answer
    __name__,
    {
        "base": "Target",
        "budget": "Budget Prices",
        "caller": "CallSettings",
        "function": "CallableTarget",
        "http_api": "HTTPTarget",
        "ledger": "Ledger",
        "openai_endpoint": "OpenAITarget",
        "remote": "RemoteTarget",
        "reply_cache": "ReplyCache",
    },
)

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
    return load_name(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
