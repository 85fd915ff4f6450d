"""How much of an endpoint's own limit is used: 1,000 attempts, one request in twenty failing.

The endpoint is a server on loopback in a process of its own. It works on so many requests at once
and takes as long for each, so its own limit is known: slots divided by seconds. What finds no slot
waits (as at vLLM), or is refused with 429 (as at a hosted endpoint).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import Row, save

from astra_rl.core.text import NoReply
from astra_rl.targets import Ledger, OpenAITarget

ATTEMPTS, SLOTS, LATENCY = 1000, 32, 2.4
"""13 requests per second, as of a large model: so it is not the machine that is measured."""


def serve(refuses: bool) -> None:
    """Run the server until the standard input ends; print its address first."""
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
        endpoint.fault = lambda number: ways[number // 20 % 5] if number % 20 == 7 else None
        print(endpoint.url, flush=True)
        sys.stdin.read()
        said = Counter(body["messages"][-1]["content"] for body in endpoint.answered)
        print(json.dumps({"answered": len(said), "most": max(said.values())}), flush=True)


def measure(refuses: bool) -> dict[str, Any]:
    """Ask everything once of a new server; returns what came of it."""
    command = [sys.executable, __file__, "--serve", *(["--refuses"] if refuses else [])]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    target = OpenAITarget("m", base_url=url, calls={"concurrency": 64})
    started = time.perf_counter()
    with Ledger().charging() as ledger:
        replies = target.respond([f"attack {number}" for number in range(ATTEMPTS)])
    seconds = time.perf_counter() - started
    seen = json.loads(server.communicate("")[0].splitlines()[-1])
    failed = sum(isinstance(reply, NoReply) for reply in replies)
    assert seen["most"] == 1, "a reply was asked for twice"
    assert seen["answered"] + failed == ATTEMPTS, "an attempt was lost"
    # A request that fails at once takes no slot: the limit is of those that are answered.
    least = math.ceil(seen["answered"] / SLOTS) * LATENCY
    return {
        "seconds": round(seconds, 2),
        "least_seconds": round(least, 2),
        "per_second": round(seen["answered"] / seconds, 1),
        "limit_per_second": SLOTS / LATENCY,
        "failed": failed,
        "requests": ledger.total().requests,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--refuses", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.refuses)
        return
    rows = []
    for name, refuses in (("waits", False), ("is refused", True)):
        found = measure(refuses)
        rows.append(
            Row(
                f"share of the endpoint's limit, what is too much {name}",
                found["least_seconds"] / found["seconds"],
                0.9,
                unit="",
                detail=found,
            )
        )
    save("endpoint_throughput", rows)


if __name__ == "__main__":
    main()
