"""Several servers of one model: which one gets a call, and how a failed one is drained.

A server that fails gets no calls for a wait that doubles with every failure; its calls go to the
others. The failure of one server is a reason to try again, not an error of the endpoint, as long as
another one is up. Every try is a request of its own for the `Caller`, so that the budget counts it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from astra_rl.errors import ConfigurationError
from astra_rl.infra.redaction import redact_message
from astra_rl.logging import logger
from astra_rl.targets.call_errors import CallError

LONGEST_DRAIN = 60.0
"""Most seconds after which a failed server is tried again."""


@dataclass
class _Server:
    name: str
    failures: int = 0
    """Failures in a row."""
    not_before: float = 0.0
    """Monotonic time before which it is not used."""
    is_permanent: bool = False
    """Whether it failed in a way that every call to it will."""


class Servers:
    """Chooses the server of each call.

    Args:
        names: Names of the servers, such as their URLs; each once, a slash at the end aside.
        first_wait: Seconds before a failed server is tried again, doubled for each further failure.

    Raises:
        ConfigurationError: There is no server, or one is named twice.
    """

    def __init__(self, names: Sequence[str], *, first_wait: float) -> None:
        names = [name.rstrip("/") for name in names]
        if not names or len(set(names)) < len(names):
            shown = redact_message(", ".join(names)) or "(none)"
            raise ConfigurationError(f"servers {shown}: give at least one, and each once.")
        self._servers = [_Server(name) for name in names]
        self._first_wait = first_wait

    def choose(self, call: str, failed: Mapping[int, int] = MappingProxyType({})) -> int:
        """Return the index of the server for a call: that of a hash, among those that are up.

        Highest random weight hashing: without one server, only its calls move. If none is up, it is
        the one that is tried again first.

        Args:
            call: What the call sends; equal calls have the same server.
            failed: How often each server failed this call. One that did so least often is chosen,
                so that a server that is back for a moment does not use up all tries of a call.
        """

        def rank(index: int) -> tuple[int, bytes]:
            text = f"{self._servers[index].name}\0{call}".encode("utf-8", "surrogatepass")
            return -failed.get(index, 0), hashlib.blake2b(text, digest_size=8).digest()

        up = self._up()
        if up:
            return max(up, key=rank)
        return min(range(len(self._servers)), key=lambda at: self._servers[at].not_before)

    def succeeded(self, index: int) -> None:
        """Note that a server answered a call."""
        self._servers[index].failures = 0
        self._servers[index].is_permanent = False

    def failed(self, index: int, error: CallError) -> CallError:
        """Drain a server after a failure that is its own; return the failure of the call.

        If another server is up, or will be, the call may be tried again, whatever the failure was.
        """
        if not error.retryable and not error.permanent:
            return error
        server, now = self._servers[index], time.monotonic()
        server.is_permanent = error.permanent
        if server.not_before <= now:  # else by another call of the same time
            # Bounded, because a float has no room for the doublings of a server that stays down.
            doubled = self._first_wait * 2.0 ** min(server.failures, 30)
            wait = max(doubled, error.retry_after or 0.0)
            server.failures += 1
            server.not_before = now + min(wait, LONGEST_DRAIN)
            if len(self._servers) > 1:
                name = redact_message(server.name)
                logger.warning("%s: %s; its calls go to other servers", name, error.reason)
        others = set(range(len(self._servers))) - {index}
        waits = error.permanent and not all(self._servers[at].is_permanent for at in others)
        if not waits and not others & set(self._up()):
            return error
        return CallError(error.reason, error.detail, retryable=True, usage=error.usage)

    def _up(self) -> list[int]:
        now = time.monotonic()
        return [at for at, each in enumerate(self._servers) if each.not_before <= now]
