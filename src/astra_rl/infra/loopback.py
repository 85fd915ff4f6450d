"""Addresses of this machine."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any
from urllib.parse import urlsplit

_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+(%[a-z0-9_-]+)?", re.ASCII)
"""A name, or an address of IPv6 with or without a zone. Libraries read others differently."""


def is_loopback(url: str) -> bool:
    """Return whether a URL names this machine: ``localhost`` or a loopback address.

    No name is resolved. The unspecified addresses ``0.0.0.0`` and ``::`` count, because a
    connection to them ends on this machine.
    """
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    if not _HOST.fullmatch(host):
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address: Any = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        try:  # short and numeric forms, for instance 127.1
            address = ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return bool(address.is_loopback or address.is_unspecified)
