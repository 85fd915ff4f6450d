"""Blocks every connection but to this machine, in the tests and in the processes they start.

Python imports a module of this name when it starts; `tests/conftest.py` puts this folder on the
path of child processes, and calls `block_network` for its own. A blocked attempt is also written
down, so that one whose error was swallowed is noticed.
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
    """Something wanted to leave this machine."""


def block_network(log: str) -> None:
    """Block the network for the rest of this process; attempts are appended to the file `log`."""

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
            with open(log, "a", encoding="utf-8") as file:
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
