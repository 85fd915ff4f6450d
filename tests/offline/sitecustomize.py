"""Block every connection except to this machine, in the tests and in the processes they start.

Python imports a module named `sitecustomize` at start-up. `tests/conftest.py` puts this folder on
`PYTHONPATH` of child processes (xdist workers included) and calls `block_network` in its own.
Blocked attempts are also logged, so that one whose exception was swallowed still fails its test.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

LOG_VARIABLE = "ASTRA_RL_TESTS_BLOCKED_NETWORK"
_ADDRESS_AT = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}
_NAME_AT = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}


class NetworkBlockedError(OSError):
    """A connection to another machine was attempted."""


def block_network(log: str) -> None:
    """Block the network for the rest of this process.

    Attempts are appended to the file that `LOG_VARIABLE` names at that time, or to `log`: an xdist
    worker inherits the block, and the file, of the process that started it, and then sets its own.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _ADDRESS_AT:
            address = arguments[_ADDRESS_AT[event]]
            if not isinstance(address, tuple):  # a socket in the file system, or none given
                return
            host = address[0]
        elif event in _NAME_AT:
            host = arguments[_NAME_AT[event]]
        else:
            return
        if not _is_here(host):
            with open(os.environ.get(LOG_VARIABLE, log), "a", encoding="utf-8") as file:
                file.write(f"{event} {host!r}\n")
            raise NetworkBlockedError(f"{event} {host!r}: the tests run without a network")

    sys.addaudithook(hook)


def _is_here(host: object) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name is None or name in ("", "localhost", "0.0.0.0", "::"):
        return True
    try:
        return ipaddress.ip_address(str(name)).is_loopback
    except ValueError:
        return False


if LOG_VARIABLE in os.environ:
    block_network(os.environ[LOG_VARIABLE])
