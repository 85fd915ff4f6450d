"""A server of notes by the SDK: `notes.py` over stdio, `notes.py PORT` over HTTP."""

import json
import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("notes")
notes: list[str] = []
mailed: list[str] = []


@server.tool()
def read_notes() -> str:
    """Read all notes."""
    return "\n".join(notes) or "no notes"


@server.tool()
def mail(to: str, text: str) -> str:
    """Mail a text to an address."""
    mailed.append(to)
    return f"mailed to {to}, {len(mailed)} in all"


@server.tool()
def add_note(text: str) -> str:
    """Add a note."""
    notes.append(text)
    return "added"


@server.tool()
def reset() -> str:
    """Start again."""
    notes.clear()
    mailed.clear()
    return "reset"


@server.tool()
def dump() -> str:
    """Return all that there is."""
    return json.dumps({"notes": notes, "mailed": mailed})


@server.tool()
def load(snapshot: str) -> str:
    """Take all of a dump."""
    found = json.loads(snapshot)
    notes[:], mailed[:] = found["notes"], found["mailed"]
    return "loaded"


if __name__ == "__main__":
    if len(sys.argv) == 1:
        server.run("stdio")
    else:
        server.run("streamable-http", port=int(sys.argv[1]))
