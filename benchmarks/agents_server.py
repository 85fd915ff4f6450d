"""An OpenAI-compatible server on loopback for the agent of `agents_models.py`.

It serves `/v1/chat/completions` with `tools`, and uses nothing of this library: prompts are those
of `apply_chat_template`, replies are those of `generate`, greedy. Waiting requests are answered in
one batch. It prints its URL and serves until its standard input is closed:

    python benchmarks/agents_server.py FOLDER [PORT]
"""

from __future__ import annotations

import copy
import json
import queue
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MOST_ROWS = 64
WAIT = 0.01
"""Seconds to wait for further requests of a batch."""


@dataclass
class Request:
    """A request, and its reply as soon as there is one."""

    body: Mapping[str, Any]
    reply: dict[str, Any] = field(default_factory=dict)
    is_done: threading.Event = field(default_factory=threading.Event)


class Agent:
    """The model, which answers the requests of a queue in batches."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.waiting: queue.Queue[Request] = queue.Queue()

    def work(self) -> None:
        """Answer batch after batch."""
        while True:
            batch = [self.waiting.get()]
            try:
                while len(batch) < MOST_ROWS:
                    batch.append(self.waiting.get(timeout=WAIT))
            except queue.Empty:
                pass
            for request, reply in zip(batch, self.replies([b.body for b in batch]), strict=True):
                request.reply = reply
                request.is_done.set()

    @torch.no_grad()
    def replies(self, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a chat completion to each body of a request."""
        prompts = [
            self.tokenizer.apply_chat_template(
                [_as_template_reads(message) for message in body["messages"]],
                tools=body.get("tools"),
                add_generation_prompt=True,
                tokenize=False,
            )
            for body in bodies
        ]
        read = self.tokenizer(
            prompts, add_special_tokens=False, padding=True, return_tensors="pt",
            return_token_type_ids=False,
        )  # fmt: skip
        most = [int(body.get("max_tokens") or 64) for body in bodies]
        written = self.model.generate(**read, max_new_tokens=max(most), do_sample=False)
        written = written[:, read["input_ids"].shape[1] :].tolist()
        return [
            self._completion(ids[:limit], int(mask.sum()))
            for ids, limit, mask in zip(written, most, read["attention_mask"], strict=True)
        ]

    def _completion(self, ids: list[int], read: int) -> dict[str, Any]:
        end = self.tokenizer.eos_token_id
        is_ended = end in ids
        ids = ids[: ids.index(end)] if is_ended else ids
        text = self.tokenizer.decode(ids)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        finish = "stop" if is_ended else "length"
        if (call := _call_in(text)) is not None:
            message |= {"content": None, "tool_calls": [call]}
            finish = "tool_calls"
        return {
            "id": uuid.uuid4().hex,
            "object": "chat.completion",
            "model": "agent",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {
                "prompt_tokens": read,
                "completion_tokens": len(ids) + is_ended,
                "total_tokens": read + len(ids) + is_ended,
            },
        }


def _as_template_reads(message: Mapping[str, Any]) -> Any:
    """Return a message with arguments of calls as mappings: the API has them as JSON texts."""
    read = copy.deepcopy(message)
    for call in read.get("tool_calls", ()):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return read


def _call_in(text: str) -> dict[str, Any] | None:
    """Return the call that a text is, as a model of Llama 3 writes it; None if it is none."""
    try:
        read = json.loads(text)
        function = {"name": read["name"], "arguments": json.dumps(read["parameters"])}
    except (ValueError, TypeError, KeyError):
        return None
    return {"id": f"call_{uuid.uuid4().hex[:12]}", "type": "function", "function": function}


class Server(ThreadingHTTPServer):
    """The server of an agent.

    Args:
        folder: Folder of the model.
        port: Port; 0 is a free one.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.agent = Agent(folder)
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.agent.work, daemon=True).start()

    @property
    def url(self) -> str:
        """URL of the API."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    """Answers ``POST /v1/chat/completions``."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        """Answer a request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = Request(body)
        self.server.agent.waiting.put(request)
        request.is_done.wait()
        self._send(200, request.reply)

    def _send(self, status: int, value: Mapping[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line per request."""


def main() -> None:
    server = Server(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.url, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
