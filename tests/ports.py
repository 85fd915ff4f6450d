"""A port for a server that is started in another process."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port of the loopback interface that nobody else is given inside the block.

    The socket that is bound to it does not listen, and allows its address to be used again, so a
    server that does the same (as asyncio, libuv and torch do) can listen on the port.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
