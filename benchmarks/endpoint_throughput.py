"""Throughput relative to an endpoint's limit: 1,000 attempts, 5% of requests failing.

The endpoint is a loopback server in its own process, with a fixed number of slots and a fixed
latency per request. Its limit is the throughput of a minimal client that keeps all slots busy
without failures, measured in the same minute so that load on the machine affects both. Requests
beyond the slots wait (as with vLLM) or are rejected with 429 (as with hosted endpoints).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import Row, save

from astra_rl.core.text import NoReply
from astra_rl.targets import Ledger, OpenAITarget

ATTEMPTS, SLOTS, LATENCY = 1000, 32, 1.6
"""20 requests per second, as of a large model: so it is not the machine that is measured."""


def serve(refuses: bool, healthy: bool) -> None:
    """Print the address and serve until the standard input is closed."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.endpoint import Fault, completion, error, serving

    ways = [
        error(429),
        error(500),
        Fault(body=b""),
        Fault(body=completion("lost"), cut=20, reset=True),
        error(400, "refused"),
    ]
    with serving() as endpoint:
        endpoint.slots, endpoint.latency, endpoint.refuses = SLOTS, LATENCY, refuses
        if not healthy:
            endpoint.fault = lambda number: ways[number // 20 % 5] if number % 20 == 7 else None
        print(endpoint.url, flush=True)
        sys.stdin.read()
        said = Counter(body["messages"][-1]["content"] for body in endpoint.answered)
        print(json.dumps({"answered": len(said), "most": max(said.values())}), flush=True)


async def ask_barely(url: str, count: int) -> None:
    """Ask with as many connections as the server has slots, and do nothing else."""
    address = urlsplit(url)
    assert address.hostname is not None
    left = iter(range(count))

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for number in left:
            body = json.dumps({"messages": [{"role": "user", "content": f"bare {number}"}]})
            head = f"POST {address.path}/x HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write((head + body).encode())
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(answer.split("Content-Length: ")[1].split("\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    await asyncio.gather(*(worker() for _ in range(SLOTS)))


def start(*options: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server; returns it and its address."""
    command = [sys.executable, __file__, "--serve", *options]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def measure(refuses: bool) -> dict[str, Any]:
    """Make all calls once with a new server; return counts and seconds."""
    server, url = start("--healthy")
    started = time.perf_counter()
    asyncio.run(ask_barely(url, ATTEMPTS))
    bare = time.perf_counter() - started
    server.communicate("")
    server, url = start(*(["--refuses"] if refuses else []))
    target = OpenAITarget("m", base_url=url, calls={"concurrency": 64})
    started = time.perf_counter()
    with Ledger().charging() as ledger:
        replies = target.respond([f"attack {number}" for number in range(ATTEMPTS)])
    seconds = time.perf_counter() - started
    seen = json.loads(server.communicate("")[0].splitlines()[-1])
    failed = sum(isinstance(reply, NoReply) for reply in replies)
    assert seen["most"] == 1, "a reply was requested twice"
    assert seen["answered"] + failed == ATTEMPTS, "an attempt was lost"
    return {
        "seconds": round(seconds, 2),
        "per_second": round(seen["answered"] / seconds, 2),
        "bare_per_second": round(ATTEMPTS / bare, 2),
        "slots_by_seconds": round(SLOTS / LATENCY, 2),
        "failed": failed,
        "requests": ledger.total().requests,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--refuses", action="store_true")
    parser.add_argument("--healthy", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.refuses, arguments.healthy)
        return
    rows = []
    for name, refuses in (("waits", False), ("is refused", True)):
        found = measure(refuses)
        rows.append(
            Row(
                f"share of the endpoint's limit, what is too much {name}",
                found["per_second"] / found["bare_per_second"],
                0.9,
                unit="",
                detail=found,
            )
        )
    save("endpoint_throughput", rows)


if __name__ == "__main__":
    main()
