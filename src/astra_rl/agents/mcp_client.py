"""Connections to MCP servers, by the official SDK (extra ``mcp``), with bounds of time and size.

A server is untrusted: it may send anything, at any length, or nothing. All that it can bring about
is a `ServerFailure`, within the limit of time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from astra_rl.agents.mcp_transports import (
    SECONDS_TO_END,
    Flow,
    HttpServer,
    StdioServer,
    described,
    http,
    stdio,
)
from astra_rl.agents.tools import ToolResult
from astra_rl.core.images import Image
from astra_rl.core.messages import Tool
from astra_rl.errors import ConfigurationError, require
from astra_rl.infra.jsonio import parse_json, unredacted_line
from astra_rl.infra.unicode import well_formed

MOST_TOOLS = 128
MOST_PAGES = 16
LONGEST_DESCRIPTION = 10_000
"""Most characters of the description of a tool, and of the JSON of its schema."""
SECONDS_TO_START = 60.0

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_.$-]{1,64}", re.ASCII)
ValueT = TypeVar("ValueT")


class ServerFailure(Exception):
    """A server did not answer as the protocol demands; the message is the reason."""


class Connection:
    """A session with a server; its process, if any, runs until `close`.

    Args:
        server: The server.
        seconds: Most seconds of a call.
        images: Whether images in results are kept; else a line stands for each.

    Raises:
        MissingDependencyError: The extra ``mcp`` is not installed.
        ServerFailure: The server does not start or does not list its tools.
    """

    def __init__(
        self, server: StdioServer | HttpServer, seconds: float = 30.0, *, images: bool = False
    ) -> None:
        require("mcp", extra="mcp")
        logging.getLogger("mcp").addHandler(logging.NullHandler())  # else texts reach the terminal
        self._seconds, self._images = seconds, images
        self._flow = Flow()
        self._transport = (
            stdio(server, self._flow)
            if isinstance(server, StdioServer)
            else http(server, self._flow, seconds)
        )
        self._loop = _loop()
        self._client: Any = None
        self._holder: asyncio.Task[None] | None = None
        try:
            self.tools = self._run(self._start(), SECONDS_TO_START)
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the server can still be called."""
        return not (self._flow.failure or self._holder is None or self._holder.done())

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool.

        Raises:
            ServerFailure: There is no result within the limits of time and size.
        """
        return self._run(self._call(name, dict(arguments)), self._seconds)

    def close(self) -> None:
        """End the session and the process."""
        with suppress(ServerFailure):
            self._run(self._end(), 8 * SECONDS_TO_END, guarded=False)

    def _run(
        self, work: Coroutine[Any, Any, ValueT], seconds: float, *, guarded: bool = True
    ) -> ValueT:
        """Run a coroutine in the thread of the event loop."""
        self._flow.received = 0
        bounded = self._within(work, seconds) if guarded else asyncio.wait_for(work, seconds)
        future = asyncio.run_coroutine_threadsafe(bounded, self._loop)
        try:
            return future.result(seconds + SECONDS_TO_START)
        except ServerFailure:
            raise
        except TimeoutError:
            future.cancel()
            raise ServerFailure(f"no answer within {seconds:g} seconds") from None
        except Exception as error:
            raise ServerFailure(self._flow.failure or described(error)) from error

    async def _within(self, work: Coroutine[Any, Any, ValueT], seconds: float) -> ValueT:
        """Await work until the session or the time ends."""
        task = asyncio.ensure_future(work)
        ends = [task, *([self._holder] if self._holder else [])]
        try:
            await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._flow.failure:
                raise ServerFailure(self._flow.failure)
            if task.done():
                return task.result()
            if len(ends) > 1 and ends[1].done():
                raise ServerFailure("the connection ended")
            self._flow.failure = f"no answer within {seconds:g} seconds"
            raise ServerFailure(self._flow.failure)
        finally:
            task.cancel()
            await asyncio.wait([task], timeout=SECONDS_TO_END)

    async def _start(self) -> tuple[Tool, ...]:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(ready))
        await ready
        return await self._listed()

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        """Keep the session open in one task, as its task groups demand."""
        import mcp

        self._closing = asyncio.Event()
        try:
            async with mcp.Client(
                self._transport, read_timeout_seconds=self._seconds, cache=None
            ) as self._client:
                if not ready.done():
                    ready.set_result(None)
                await self._closing.wait()
        except BaseException as error:
            if not ready.done():
                cause = self._flow.failure or described(error)
                ready.set_exception(ServerFailure(cause))
            if not isinstance(error, Exception | BaseExceptionGroup):
                raise

    async def _end(self) -> None:
        if self._holder is not None:
            if self._client is not None:
                self._closing.set()
                await asyncio.wait([self._holder], timeout=4 * SECONDS_TO_END)
            self._holder.cancel()
            with suppress(BaseException):
                await self._holder

    async def _listed(self) -> tuple[Tool, ...]:
        found: list[Tool] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            found += [
                Tool(
                    str(each.name),
                    well_formed(each.description or ""),
                    # Chat APIs and templates demand it, also of a tool without arguments.
                    {"properties": {}, **each.input_schema},
                )
                for each in page.tools
            ]
            cursor = page.next_cursor
            if len(found) > MOST_TOOLS:
                break
            if cursor is None:
                return tuple(found)
        raise ServerFailure(f"it lists more than {MOST_TOOLS} tools or {MOST_PAGES} pages of them")

    async def _call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        import mcp
        import mcp_types as types

        request = types.CallToolRequest(
            params=types.CallToolRequestParams(name=name, arguments=arguments)
        )
        try:
            # Not `call_tool`: it evaluates the server's schema, whose patterns can run for ever.
            result = await self._client.session.send_request(request, types.CallToolResult)
        except mcp.MCPError as error:
            broken = (
                types.CONNECTION_CLOSED,
                types.REQUEST_TIMEOUT,
                types.PARSE_ERROR,
                types.INVALID_REQUEST,
            )
            if error.code in broken or self._flow.failure:
                raise
            return ToolResult(well_formed(error.message), is_error=True)
        return _read(result, with_images=self._images)


def check_tools(tools: Sequence[Tool]) -> None:
    """Check what a server says of its tools.

    Raises:
        ConfigurationError: Two have the same name, or a name, description or schema cannot be shown
            to a model.
    """
    seen: set[str] = set()
    for tool in tools:
        what = f"the tool {tool.name[:80]!a}"
        if not _NAME.fullmatch(tool.name):
            raise ConfigurationError(
                f"{what}: chat APIs allow names of 1 to 64 ASCII letters, digits, _ and - only; "
                "rename it in the server, or name it in hidden."
            )
        if tool.name in seen:
            raise ConfigurationError(f"{what} is listed twice; which one is called is not known.")
        seen.add(tool.name)
        try:
            schema = unredacted_line(parse_json(unredacted_line(dict(tool.parameters))))
        except (ValueError, RecursionError):
            raise ConfigurationError(f"{what}: its schema is nested too deeply.") from None
        for word in _trusted_words(tool.parameters):
            if not _WORD.fullmatch(word):
                raise ConfigurationError(
                    f"{what}: its schema has {word[:80]!a} as a name or type, which could be a "
                    "control token of a model; names of arguments are 1 to 64 ASCII letters, "
                    "digits and _ . $ -."
                )
        if len(tool.description) > LONGEST_DESCRIPTION or len(schema) > LONGEST_DESCRIPTION:
            raise ConfigurationError(
                f"{what}: its description and its schema may have {LONGEST_DESCRIPTION} characters "
                "each; name it in hidden if the agent does not need it."
            )


def _trusted_words(schema: Any) -> Iterator[str]:
    """Yield what prompts contain as the template's own text: keys, and values of type and name."""
    parts = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            yield from map(str, part)
            for key in ("type", "name"):
                if isinstance(part.get(key), str):
                    yield part[key]
            parts += part.values()
        elif isinstance(part, list | tuple):
            parts += part


_threads: dict[int, asyncio.AbstractEventLoop] = {}
_lock = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of the connections of this process, in a thread that ends with it."""
    with _lock:
        loop = _threads.get(os.getpid())
        if loop is None:
            loop = _threads[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="mcp", daemon=True).start()
        return loop


def _read(result: Any, *, with_images: bool) -> ToolResult:
    """Return what a model reads of the result of a call."""
    parts, images = [], []
    for block in result.content:
        if with_images and (image := _image_of(block)) is not None:
            images.append(image)
            continue
        text = getattr(block, "text", None) or getattr(
            getattr(block, "resource", None), "text", None
        )
        if text is None:
            kind = getattr(block, "mime_type", None) or block.type
            text = "" if block.type == "text" else f"({str(kind)[:60]!a}, not shown)"
        parts.append(str(text))
    if not (parts or images) and result.structured_content is not None:
        return ToolResult(unredacted_line(result.structured_content), is_error=result.is_error)
    return ToolResult(well_formed("\n".join(parts)), images, is_error=result.is_error)


def _image_of(block: Any) -> Image | None:
    """Return the image of a part of a result, also in a resource; None if it has no known type."""
    holder = getattr(block, "resource", block)
    data = getattr(holder, "blob", getattr(holder, "data", None))
    try:
        return Image(holder.mime_type, data) if isinstance(data, str) else None
    except ConfigurationError:
        return None
