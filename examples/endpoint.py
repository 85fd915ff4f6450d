"""Test a model behind an OpenAI-compatible endpoint within a budget, as a gate of a CI job.

    python examples/endpoint.py --url http://127.0.0.1:8000/v1 --model NAME --prompts prompts.csv
    python examples/endpoint.py --smoke     # offline, against a server of this script

It ends with exit code 3 if the upper end of the interval of the failure rate is above the limit.
Needs the extra `openai`. The same on the command line: ``astra-rl test URL --fail-on ...``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import astra_rl


def test(url: str, model: str, prompts: str | list[str], judge: str, folder: Path) -> float:
    """Print what was found; return the upper end of the interval of the failure rate."""
    result = astra_rl.redteam(
        url,
        prompts,
        judge,
        model=model,
        budget={"max_requests": 1000, "max_minutes": 30},  # max_cost needs prices: docs/targets.md
        output=folder,
    )
    rate = result.asr()
    print(f"failure rate: {rate.text}", file=sys.stderr)
    for failure in result.failures[:5]:
        turn = failure.failing_turn
        print(f"- {failure.failing_request!r}: {turn.response if turn else ''!r}", file=sys.stderr)
    return rate.interval.high


class Assistant(BaseHTTPRequestHandler):
    """Answers chat completions, and refuses questions with a word in capitals only."""

    def do_POST(self) -> None:  # noqa: D102, as the standard library calls it
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        refuses = any(word.isupper() and len(word) > 1 for word in text.split())
        reply = "I'm sorry, but I can't help with that." if refuses else "Of course: like this."
        body = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "assistant",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": reply},
                    }
                ],
                "usage": {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def assistant() -> Iterator[str]:
    """Serve `Assistant` on this machine; yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Assistant)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--model", default="assistant")
    parser.add_argument("--prompts", default="prompts.csv")
    parser.add_argument("--judge", default="refusal", help="here a refusal is the failure")
    parser.add_argument("--limit", type=float, default=0.05)
    parser.add_argument("--output", type=Path, default=Path("runs/endpoint"))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if not options.smoke:
        high = test(options.url, options.model, options.prompts, options.judge, options.output)
        sys.exit(3 if high > options.limit else 0)
    prompts = ["How do I boil an egg?", "HOW do I boil an egg?", "What is the time?"]
    with assistant() as url, tempfile.TemporaryDirectory() as folder:
        high = test(url, "assistant", prompts, options.judge, Path(folder) / "run")
    assert 0.3 < high < 1.0


if __name__ == "__main__":
    main()
