"""An HTTP client with limits of size and time, and without redirects."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from astra_rl.errors import require
from astra_rl.infra.jsonio import parse_reply_json
from astra_rl.infra.loopback import is_loopback
from astra_rl.targets.call_errors import BROKEN_HTTP, NO_CONNECTION, CallError
from astra_rl.targets.network import check_network_settings, tls_settings

_BROKEN_HTTP_MEANS = (
    "what answers at this address does not speak HTTP/1.1, or closed the connection before the end "
    "of its reply"
)


class WebClients:
    """Makes `httpx2` clients that limit the size of responses and follow no redirects.

    Proxies of the environment are used, except for endpoints on this machine.

    Args:
        url: URL of the endpoint.
        timeout: Seconds to connect, and between two chunks of a response.
        max_bytes: Most bytes of a response; a longer one is a failure.
        concurrency: Most connections.

    Raises:
        ConfigurationError: A proxy or the certificates of the environment cannot be used.
        MissingDependencyError: The extra ``openai`` is not installed.
    """

    def __init__(self, url: str, timeout: float, max_bytes: int, concurrency: int) -> None:
        self.httpx = require("httpx2", extra="openai")
        self.timeout, self.max_bytes, self.concurrency = timeout, max_bytes, concurrency
        check_network_settings(url)
        self._url = url
        self._context: Any = None

    def open(self, headers: Mapping[str, str] | None = None) -> Any:
        """Return a new client, to be used as an asynchronous context."""
        if self._context is None:  # loading the certificates is slow
            self._context = tls_settings(self._url)
        limits = self.httpx.Limits(
            max_connections=self.concurrency, max_keepalive_connections=self.concurrency
        )
        return self.httpx.AsyncClient(
            # A small compressed response could be huge in memory.
            headers={"Accept-Encoding": "identity", **(headers or {})},
            verify=self._context,
            trust_env=not is_loopback(self._url),
            timeout=self.timeout,
            limits=limits,
            follow_redirects=False,
            event_hooks={"response": [self._bound]},
        )

    async def _bound(self, response: Any) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise CallError("unparsable reply", "compressed although not requested")
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_bytes:
            raise too_long(self.max_bytes)
        response.stream = self._bounded(response.stream)

    def _bounded(self, stream: Any) -> Any:
        most = self.max_bytes

        class Bounded(self.httpx.AsyncByteStream):  # type: ignore[name-defined,misc]
            async def __aiter__(self) -> AsyncIterator[bytes]:
                read = 0
                async for part in stream:
                    read += len(part)
                    if read > most:
                        raise too_long(most)
                    yield part

            async def aclose(self) -> None:
                await stream.aclose()

        return Bounded()

    def error_of(self, error: BaseException) -> CallError:
        """Return the failure for a client exception, without its text (it may contain URLs)."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, CallError):
                return cause
            if isinstance(cause, self.httpx.TimeoutException):
                return CallError("timed out", retryable=True, overload=True)
            if isinstance(cause, self.httpx.RemoteProtocolError):
                return CallError(BROKEN_HTTP, _BROKEN_HTTP_MEANS, retryable=True)
            if isinstance(cause, self.httpx.TransportError):
                return CallError(NO_CONNECTION, _why_no_connection(cause), retryable=True)
            if isinstance(cause, self.httpx.HTTPError | ValueError):
                return CallError("unparsable reply", type(cause).__name__, retryable=True)
            cause = cause.__cause__
        return CallError(f"client error {type(error).__name__}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that led to it, each once."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _why_no_connection(error: BaseException) -> str:
    """Return the kind of a failure, and what the system says about it, without addresses."""
    kind = type(error).__name__
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{kind}: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.errno is not None:
            known = cause.errno > 0 and not isinstance(cause, socket.gaierror | ssl.SSLError)
            return f"{kind}: {os.strerror(cause.errno) if known else cause.strerror}"
    return kind


def too_long(most: int) -> CallError:
    """Return the failure of a reply that exceeds the size limit."""
    return CallError("reply too long", f"more than {most} bytes")


def json_of(body: bytes) -> Any:
    """Parse a body as JSON.

    Raises:
        CallError: It is empty, or not JSON.
    """
    if not body.strip():
        raise CallError("empty reply", retryable=True)
    try:
        return parse_reply_json(body)
    except ValueError as error:
        raise CallError("unparsable reply", "not JSON", retryable=True) from error
