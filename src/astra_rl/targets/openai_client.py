"""The official OpenAI client, with limits and without its own retries."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from astra_rl.errors import require
from astra_rl.targets.caller import CallSettings
from astra_rl.targets.credentials import check_sent_variables, check_url
from astra_rl.targets.http_client import WebClients

OPENAI_URL = "https://api.openai.com/v1"


class Reply(NamedTuple):
    """Response of an endpoint, of any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class OfficialClient:
    """Opens the official client for a batch of calls.

    Args:
        base_url: URL of the endpoint; None reads ``OPENAI_BASE_URL``, else it is OpenAI's.
        key: Returns the key at the start of a batch, so that it is never stored.
        calls: Limits of time and size.

    Attributes:
        base_url: URL of the endpoint.
        host: Host and port of the endpoint.

    Raises:
        ConfigurationError: The URL, or a network setting of the environment, is not valid.
        MissingDependencyError: The extra ``openai`` is not installed.
    """

    def __init__(self, base_url: str | None, key: Callable[[], str], calls: CallSettings) -> None:
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        self.host = check_url(self.base_url, "base_url")
        self._key = key
        check_sent_variables()
        self._openai = require("openai", extra="openai")
        self._web = WebClients(
            self.base_url, calls.timeout, calls.max_reply_bytes, calls.concurrency
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """Open a client; it is closed at the end of the block."""
        async with self._web.open() as web:
            yield self._openai.AsyncOpenAI(
                api_key=self._key(), base_url=self.base_url, max_retries=0, http_client=web
            )

    async def reply_to(self, request: Awaitable[Any]) -> Reply:
        """Await a request ``client.….with_raw_response.create(...)``.

        The response is raw because the client does not validate its form.

        Raises:
            CallError: There is no response.
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
