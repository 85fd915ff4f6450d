"""Black-box targets: endpoints, HTTP APIs and Python functions."""

from astra_rl.targets.base import Target
from astra_rl.targets.budget import Budget, Prices
from astra_rl.targets.caller import CallSettings
from astra_rl.targets.function import CallableTarget
from astra_rl.targets.http_api import HTTPTarget
from astra_rl.targets.ledger import Ledger
from astra_rl.targets.openai_endpoint import OpenAITarget
from astra_rl.targets.remote import RemoteTarget
from astra_rl.targets.reply_cache import ReplyCache

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
