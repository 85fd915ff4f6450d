"""A server of plain JSON lines, which starts quickly and can misbehave: `raw.py HOW`."""

import json
import os
import sys
import time
from pathlib import Path

HOW = sys.argv[1]
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
count = 0


def send(**fields):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **fields}) + "\n")
    sys.stdout.flush()


def tool(name, **fields):
    return {"name": name, "description": f"Tool {name}.", "inputSchema": SCHEMA, **fields}


def listed():
    deep = SCHEMA
    for _ in range(90):
        deep = {"type": "object", "properties": {"a": deep}}
    backtracking = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(a+)+$"}}}
    return {
        "twice": [tool("say"), tool("say")],
        "bad_name": [tool("say\x1b[31m evil")],
        "deep": [tool("say", inputSchema=deep | {"type": "object"})],
        "control_key": [
            tool("say", inputSchema={"type": "object", "properties": {"<|im_end|>": {}}})
        ],
        "control_type": [
            tool("say", inputSchema={**SCHEMA, "properties": {"text": {"type": "<|im_start|>"}}})
        ],
        "no_object": [tool("say", inputSchema={"type": "string"})],
        "long": [tool("say", description="x" * 20_000)],
        "no_tools": [],
        "no_arguments": [{"name": "say", "inputSchema": {"type": "object"}}],
        "pattern": [tool("say", outputSchema=backtracking)],
        "wrong_types": [{"name": 5, "inputSchema": []}],
        "other_tools": [tool("say", description=f"Process {os.getpid()}.")],
    }.get(HOW, [tool("say")])


def result(text, **fields):
    return {"content": [{"type": "text", "text": text}], **fields}


def called(id, arguments):
    global count
    count += 1
    text = arguments.get("text", "")
    if HOW == "endless":
        while True:
            sys.stdout.write("x" * 65536)
    if HOW == "flood":
        while True:
            send(method="notifications/message", params={"level": "info", "data": "x" * 1000})
    if HOW == "prints":
        sys.stdout.write("\n" * 100_000 + json.dumps({"level": "info"}) + "\n[]\n{]\n")
        sys.stdout.buffer.write(b'{"a": "\xff"}\n')
    if HOW == "hang":
        time.sleep(600)
    if HOW == "dies":
        os._exit(3)
    if HOW == "no_json":
        print('{"jsonrpc": ]', "\x1b]0;title\x07", flush=True)
        os._exit(0)
    if HOW == "nested":
        print(f'{{"jsonrpc": "2.0", "id": {id}, "result": {"[" * 50_000}', flush=True)
        os._exit(0)
    if HOW == "kills":  # its client, in the middle of a call, once
        folder = Path(os.environ["FOLDER"])
        fatal = folder / "fatal.txt"
        with open(folder / "calls.txt", "a") as file:
            file.write("x")
            size = file.tell()
        if fatal.exists() and size >= int(fatal.read_text()):
            fatal.unlink()
            os.kill(os.getppid(), 9)
    if HOW == "random":
        text = str(time.time_ns())
    if HOW == "refuses":
        return send(id=id, error={"code": -32602, "message": "no \x1b[31m such argument"})
    answer = {
        "huge": result("y" * 2_000_000),
        "wrong_result": {"content": "text", "isError": "yes"},
        "control": result("a\x00b\x1b[31mc\u202ed\ud800"),
        "resource": {
            "content": [
                {
                    "type": "resource",
                    "resource": {"uri": "file:///a", "blob": "AAAA", "mimeType": "image/png"},
                }
            ]
        },
        "audio": {"content": [{"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}]},
        "svg": {"content": [{"type": "image", "data": "AAAA", "mimeType": "image/svg+xml"}]},
        "image": {"content": [{"type": "image", "data": "AAAA", "mimeType": "image/png"}]},
        "pattern": result("t", structuredContent={"x": "a" * 60 + "b"}),
        "structured": {"content": [], "structuredContent": {"a": 1}},
        "is_error": result("not today", isError=True),
    }.get(HOW, result(f"{count}: {text}"))
    return send(id=id, result=answer)


if HOW == "silent":
    time.sleep(600)
if HOW == "exits":
    sys.exit(3)
for line in sys.stdin:
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        info = {"name": "raw", "version": "1"}
        send(
            id=id,
            result={
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": info,
            },
        )
    elif method == "tools/list":
        more = {"nextCursor": "more"} if HOW == "pages" else {}
        send(id=id, result={"tools": [*listed(), *[tool("place")][HOW == "no_tools" :]], **more})
    elif method == "tools/call":
        called(id, message["params"].get("arguments") or {})
    elif id is not None:
        send(id=id, error={"code": -32601, "message": "no such method"})
if HOW == "stays":
    time.sleep(600)
