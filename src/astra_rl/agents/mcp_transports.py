"""Transports of MCP servers, with bounds of what they send: a process, and streamable HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from astra_rl.errors import ConfigurationError
from astra_rl.infra.jsonio import jsonable, parse_json
from astra_rl.infra.loopback import is_loopback

MOST_BYTES = 1 << 20
"""Most bytes of one message of a server."""
MOST_BYTES_PER_REQUEST = 4 << 20
"""Most bytes that a server sends from one request to the next."""
SECONDS_TO_END = 1.0
"""Seconds that a server has to exit after its input has ended; then it is killed."""
_INHERITED = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "SYSTEMROOT", "TEMP")


@dataclass(frozen=True)
class StdioServer:
    """An MCP server that is started as a process and talks over its standard input and output.

    Each process has an empty folder of its own as its working directory. It inherits ``PATH`` and
    ``HOME``, and no other variable that could hold a credential.

    Attributes:
        command: Program and arguments.
        env: Further environment variables.
    """

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Name in messages."""
        return " ".join(self.command)


@dataclass(frozen=True)
class HttpServer:
    """An MCP server that runs already, with the transport streamable HTTP.

    Attributes:
        url: Its address, for instance ``"http://127.0.0.1:8000/mcp"``.
        headers: HTTP headers of each request.
        remote: Allow an address that is not of this machine. Redirects to another server are never
            followed.

    Raises:
        ConfigurationError: The address is no HTTP URL, or is not of this machine.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    remote: bool = False

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigurationError(f"url={self.url!a}; give an address http://... or https://...")
        if not self.remote and not is_loopback(self.url):
            raise ConfigurationError(
                f"url={self.url!a} is not an address of this machine; set remote=True to allow it."
            )

    @property
    def name(self) -> str:
        """Name in messages."""
        return self.url


@dataclass
class Flow:
    """What a server has sent, and why the connection to it was ended."""

    received: int = 0
    failure: str = ""

    def count(self, size: int) -> bool:
        """Count bytes; return whether they are within the limit."""
        self.received += size
        if self.received > MOST_BYTES_PER_REQUEST:
            self.failure = self.failure or f"it sent more than {MOST_BYTES_PER_REQUEST} bytes"
        return not self.failure


@asynccontextmanager
async def stdio(server: StdioServer, flow: Flow) -> AsyncIterator[tuple[Any, Any]]:
    """Start a process, as the transport of the SDK does, with bounds of what it sends."""
    import anyio
    from mcp.shared.message import SessionMessage

    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="mcp-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            *server.command,
            env={**inherited, **server.env},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        reader, stdin = process.stdout, process.stdin
        to_session, incoming = anyio.create_memory_object_stream[Any](0)
        outgoing, from_session = anyio.create_memory_object_stream[Any](0)

        async def read() -> None:
            async with to_session:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                    async for line in _lines(reader, flow):
                        if b'"jsonrpc"' not in line:  # something that a program printed
                            continue
                        message = _message(line)
                        if message is None:
                            return
                        await to_session.send(message)

        async def write() -> None:
            async with from_session:
                with suppress(OSError):
                    async for message in from_session:
                        text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                        stdin.write(f"{text}\n".encode())
                        await stdin.drain()

        def _message(line: bytes) -> Any:
            import mcp_types as types

            try:
                # Lone surrogates are no JSON text for pydantic; `jsonable` replaces them.
                value = jsonable(parse_json(line))
                return SessionMessage(
                    types.jsonrpc_message_adapter.validate_python(value, by_name=False)
                )
            except ValueError as error:
                flow.failure = f"it sent a message that cannot be read: {described(error)}"
                return None

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                tasks.start_soon(write)
                try:
                    yield incoming, outgoing
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await _end_process(process, may_exit=not flow.failure)
                for stream in (to_session, incoming, outgoing, from_session):
                    await stream.aclose()


async def _lines(reader: asyncio.StreamReader, flow: Flow) -> AsyncIterator[bytes]:
    """Yield lines until the end, or a limit of size."""
    rest = b""
    while chunk := await reader.read(1 << 16):
        if not flow.count(len(chunk)):
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > MOST_BYTES:
            flow.failure = f"it sent a message of more than {MOST_BYTES} bytes"
            return


async def _end_process(process: asyncio.subprocess.Process, *, may_exit: bool) -> None:
    """Close the input of a process; kill it and its group if it does not exit, or at once."""
    assert process.stdin is not None
    try:
        with suppress(OSError):
            process.stdin.close()
        if may_exit:
            await _exited(process)
    finally:
        # Also if it has exited: children of its group may run on.
        with suppress(OSError):
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        with suppress(asyncio.CancelledError):
            await _exited(process)
        # Its pipes may be open in a process that left the group.
        process._transport.close()  # type: ignore[attr-defined]


async def _exited(process: asyncio.subprocess.Process) -> None:
    """Wait until a process has ended; `wait` of asyncio also waits for the end of its pipes."""
    for _ in range(50):
        if process.returncode is not None:
            return
        await asyncio.sleep(SECONDS_TO_END / 50)


@asynccontextmanager
async def http(server: HttpServer, flow: Flow, seconds: float) -> AsyncIterator[tuple[Any, Any]]:
    """Connect to a server over HTTP, without proxies: they could lead to another machine."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    class Counted(httpx2.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._stream:
                if not flow.count(len(chunk)):
                    raise httpx2.ReadError(flow.failure)
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    class Guarded(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            if not server.remote and not is_loopback(str(request.url)):
                flow.failure = "it sends the client to another machine"
                raise httpx2.ConnectError(flow.failure)
            response = await super().handle_async_request(request)
            if response.status_code >= 500:
                flow.failure = f"HTTP status {response.status_code}"
            response.stream = Counted(response.stream)
            return response

    async with (
        httpx2.AsyncClient(
            headers=dict(server.headers), timeout=seconds, trust_env=False, transport=Guarded()
        ) as client,
        streamable_http_client(
            server.url, http_client=client, max_sse_event_size=MOST_BYTES
        ) as streams,
    ):
        yield streams


def described(error: BaseException) -> str:
    """Return the first reason of an error, on one line of ASCII."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())[:300]
    return ascii(f"{type(error).__name__}: {text}")[1:-1]
