"""Calls of endpoints by one process for all, so that there is one budget, one cache, one limit.

While episodes are played, a process that needs a reply of an endpoint takes part in a *round*: all
processes meet, process 0 makes the calls of all of them, and each gets its replies. A process that
has finished its episodes takes part in rounds until all have.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakSet

from astra_rl.distributed.ranks import Ranks, pack_error, unpack_error
from astra_rl.distributed.records import pack_texts, unpack_texts
from astra_rl.errors import ProcessFailedError


class Endpoint(Protocol):
    """What is called over the network, or costs money."""

    @property
    def address(self) -> str:
        """Text that is equal in all processes, and for endpoints whose replies are the same."""

    def answer(self, items: Sequence[Any]) -> Sequence[str]:
        """Return one reply per item, a text of `astra_rl.core.text`; in process 0 only."""

    def pack(self, item: Any) -> Any:
        """Return an item as JSON values."""

    def unpack(self, packed: Any) -> Any:
        """Return the item of `pack`."""


_known: WeakSet[Endpoint] = WeakSet()
"""The endpoints of this process, see `introduce`."""
_broker: ContextVar[Broker | None] = ContextVar("broker", default=None)


def introduce(endpoint: Endpoint) -> None:
    """Make an endpoint known, so that it is found when another process asks it."""
    _known.add(endpoint)


def ask(endpoint: Endpoint, items: Sequence[Any]) -> Sequence[str]:
    """Return the replies to some items; on several processes, process 0 makes the calls."""
    broker = _broker.get()
    return endpoint.answer(items) if broker is None else broker.ask(endpoint, items)


def is_shared() -> bool:
    """Whether `ask` has another process make the calls, or makes those of others."""
    return _broker.get() is not None


class Broker:
    """The rounds of one section in which episodes are played.

    Args:
        ranks: The processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        # A moderator with a time limit is called in a thread, which may outlive the limit.
        self._turn = threading.Lock()
        self._is_open = True

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Have `ask` take part in rounds inside the block, and in further ones at its end.

        All processes open and close the block together. Errors of the block are raised at its end,
        after the last round.
        """
        token = _broker.set(self)
        try:
            yield
        finally:
            _broker.reset(token)
            while self._round(None) is not None:
                pass

    def ask(self, endpoint: Endpoint, items: Sequence[Any]) -> Sequence[str]:
        """Return the replies of an endpoint.

        Raises:
            Exception: What the calls of this endpoint raised in process 0.
        """
        packed = [endpoint.pack(item) for item in items]
        found = self._round({"address": endpoint.address, "items": packed})
        assert found is not None
        mine = found[self.ranks.rank]
        if "error" in mine:
            raise unpack_error(mine["error"], 0)
        return unpack_texts(mine["replies"])

    def _round(self, request: dict[str, Any] | None) -> list[Any] | None:
        """Take part in a round; return what each process gets, None if no process asked."""
        with self._turn:
            if not self._is_open:
                raise ProcessFailedError("the episodes that this call belongs to are over.")
            requests = self.ranks.gather_json(request)
            if all(each is None for each in requests):
                self._is_open = False
                return None
            found: list[Any] = self.ranks.share(_served(requests) if self.ranks.is_first else None)
            return found


def _served(requests: Sequence[dict[str, Any] | None]) -> list[Any]:
    """Make the calls of a round, those of one endpoint together; return what each process gets."""
    found: list[Any] = [None] * len(requests)
    addresses = dict.fromkeys(each["address"] for each in requests if each is not None)
    token = _broker.set(None)  # the calls themselves are made here
    try:
        for address in addresses:
            rows = [
                (rank, each["items"])
                for rank, each in enumerate(requests)
                if each is not None and each["address"] == address
            ]
            for (rank, _), replies in zip(rows, _answers(address, rows), strict=True):
                found[rank] = replies
    finally:
        _broker.reset(token)
    return found


def _answers(address: str, rows: Sequence[tuple[int, Sequence[Any]]]) -> list[dict[str, Any]]:
    try:
        endpoint = next((each for each in _known if each.address == address), None)
        if endpoint is None:
            raise ProcessFailedError(
                f"process 0 has no endpoint {address!r}, which another process asks. Build the "
                "same objects in every process."
            )
        items = [endpoint.unpack(item) for _, part in rows for item in part]
        replies = list(endpoint.answer(items))
    except Exception as error:
        return [{"error": pack_error(error)} for _ in rows]
    found, start = [], 0
    for _, part in rows:
        found.append({"replies": pack_texts(replies[start : start + len(part)])})
        start += len(part)
    return found
