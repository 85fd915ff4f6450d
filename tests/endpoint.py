"""A real HTTP server on loopback that answers as an endpoint does, and fails as one does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

Body = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What happens instead of a reply.

    Attributes:
        status: Of the answer.
        headers: Beside the usual ones.
        body: Of the answer.
        cut: Send only so many bytes of the body, then close the connection.
        reset: Break the connection instead of closing it.
        drip: Seconds between two bytes of the body.
        wait: Seconds before anything is sent.
        chunked: Do not say how long the body is.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    cut: int | None = None
    reset: bool = False
    drip: float = 0.0
    wait: float = 0.0
    chunked: bool = False


FAST = {"first_wait": 0.01, "start_concurrency": 8}
"""How calls are made in tests: tries again come soon."""


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Fault:
    """Return an answer as OpenAI's endpoint words its errors."""
    body = {"error": {"message": message, "type": "x", "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(status, named, json.dumps(body).encode())


def completion(text: Any, *, finish: str = "stop", **more: Any) -> bytes:
    """Return the body of a reply, in the forms of both interfaces."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "text": text, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps({"id": "x", "choices": [choice], "usage": usage} | more).encode()


def said(body: Body) -> str:
    """Return the last thing that an endpoint was asked."""
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body.get("prompt", body.get("message", "")))


class Endpoint:
    """The server.

    Attributes:
        reply: Makes the text of a reply from the body of a request.
        faults: What happens first, one per request in the order they come.
        fault: Is asked for each request, by its number from 0, when `faults` are used up.
        latency: Seconds that a reply takes.
        slots: So many requests are worked on at once; None is without limit.
        refuses: Whether a request that finds no slot is answered 429, or waits.
        requests: Path, headers and body of each request that came.
        answered: Bodies of those that got a reply.
        most_at_once: Most requests that were worked on at once.
    """

    def __init__(self) -> None:
        self._working = 0
        self.reset()
        self._free = asyncio.Condition()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2048))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def reset(self) -> None:
        """Answer everything, and forget what came."""
        self.reply: Callable[[Body], Any] = lambda body: f"you said {said(body)}"
        self.faults: list[Fault | None] = []
        self.fault: Callable[[int], Fault | None] = lambda number: None
        self.latency = 0.0
        self.slots: int | None = None
        self.refuses = True
        self.requests: list[tuple[str, dict[str, str], Body]] = []
        self.answered: list[Body] = []
        self.most_at_once = 0

    def close(self) -> None:
        """Stop."""
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _shut(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split()[1]
        pairs = (line.split(": ", 1) for line in head[1:] if ": " in line)
        headers = {name.lower(): value for name, value in pairs}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or "{}")
        number = len(self.requests)
        self.requests.append((path, headers, body))
        fault = self.faults.pop(0) if self.faults else self.fault(number)
        if fault is not None:
            return await self._fail(writer, fault)
        if self.slots is not None and self._working >= self.slots and self.refuses:
            return await self._fail(writer, error(429, "too many at once"))
        async with self._free:
            await self._free.wait_for(lambda: self.slots is None or self._working < self.slots)
            self._working += 1
        self.most_at_once = max(self.most_at_once, self._working)
        try:
            await asyncio.sleep(self.latency)
            text = self.reply(body)
        finally:
            async with self._free:
                self._working -= 1
                self._free.notify()
        self.answered.append(body)
        return await self._fail(
            writer, Fault(body=text if isinstance(text, bytes) else completion(text))
        )

    async def _fail(self, writer: asyncio.StreamWriter, fault: Fault) -> bool:
        await asyncio.sleep(fault.wait)
        lines = {"Content-Type": "application/json", "Content-Length": str(len(fault.body))}
        if fault.chunked:
            lines = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **fault.headers}.items())
        writer.write(f"HTTP/1.1 {fault.status} X\r\n{head}\r\n".encode())
        body = fault.body if fault.cut is None else fault.body[: fault.cut]
        if fault.chunked:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        if fault.drip:
            for byte in body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(fault.drip)
        else:
            writer.write(body)
        await writer.drain()
        if fault.reset:
            writer.transport.abort()
        return fault.cut is None and not fault.reset


@contextlib.contextmanager
def serving() -> Iterator[Endpoint]:
    """Run an endpoint inside the block, reached without any proxy of the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        patch.setenv("NO_PROXY", "*")
        endpoint = Endpoint()
        try:
            yield endpoint
        finally:
            endpoint.close()


def messages(*texts: str) -> Sequence[Mapping[str, str]]:
    """Return a chat that a user begins."""
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]


def judging(answer: Callable[[Body], Any], verdict: float = 3) -> Callable[[Body], Any]:
    """Return a reply that gives a verdict where a judge is asked for one, else an answer."""

    def reply(body: Body) -> Any:
        found = re.search(r"VERDICT ([0-9a-f]+): N", said(body))
        return f"I thought.\nVERDICT {found[1]}: {verdict}" if found else answer(body)

    return reply
