"""The official client of OpenAI-compatible endpoints, bounded and without tries of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from astra_rl.errors import require
from astra_rl.targets.caller import CallSettings
from astra_rl.targets.credentials import check_url
from astra_rl.targets.http_client import WebClients

OPENAI_URL = "https://api.openai.com/v1"


class Reply(NamedTuple):
    """What an endpoint answered: no exception for a status that is no success."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class OfficialClient:
    """Opens the client for a batch of calls.

    Args:
        base_url: Of the endpoint; None takes ``OPENAI_BASE_URL``, or OpenAI's own.
        key: Returns the key when a batch begins, so that nothing keeps it.
        calls: Bounds of time and size.

    Attributes:
        base_url: Of the endpoint.
        host: Its host and port.

    Raises:
        ConfigurationError: The address is none.
        MissingDependencyError: The extra ``openai`` is not installed.
    """

    def __init__(self, base_url: str | None, key: Callable[[], str], calls: CallSettings) -> None:
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        self.host = check_url(self.base_url, "base_url")
        self._key = key
        self._openai = require("openai", extra="openai")
        self._web = WebClients(calls.timeout, calls.max_reply_bytes, calls.concurrency)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """Open a client, and close it at the end of the block."""
        async with self._web.open() as web:
            yield self._openai.AsyncOpenAI(
                api_key=self._key(), base_url=self.base_url, max_retries=0, http_client=web
            )

    async def reply_to(self, request: Awaitable[Any]) -> Reply:
        """Wait for the answer to a request ``client.….with_raw_response.create(...)``.

        Raw, because the client would take a reply of another form for what it should be.

        Raises:
            CallError: There is none.
        """
        try:
            response = (await request).http_response
        except self._openai.APIStatusError as error:
            response = error.response
        except self._openai.APIConnectionError as error:
            raise self._web.error_of(error) from None
        try:
            return Reply(response.status_code, response.headers, bytes(response.content))
        except Exception as error:  # the body of an error could not be read
            raise self._web.error_of(error) from None
