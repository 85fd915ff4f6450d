"""Two threads that compute in turns: one plays episodes while the other updates the weights.

Models, adapters, caches and the random generators of a process are shared, so one thread computes
at a time. A thread gives its turn away where it only waits: for an inference engine, or for an
endpoint. That is the time in which the other one works.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar

from astra_rl.core.seeding import generator_states, restore_generators


class Turns:
    """A lock that is given in the order of the requests, so that no thread starves."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()

    def acquire(self) -> None:
        """Wait for the turn."""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                self._changed.wait_for(lambda: self._line[0] is ticket)
            except BaseException:  # an interrupt
                self._line.remove(ticket)
                self._changed.notify_all()
                raise

    def release(self) -> None:
        """Give the turn to the thread that waits longest."""
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()

    @property
    def is_wanted(self) -> bool:
        """Whether another thread waits for the turn."""
        return len(self._line) > 1


_turns: ContextVar[Turns | None] = ContextVar("turns", default=None)


@contextlib.contextmanager
def taking_turns(turns: Turns) -> Iterator[None]:
    """Compute the block in a turn; threads that it starts with a copy of its context share them."""
    turns.acquire()
    token = _turns.set(turns)
    try:
        yield
    finally:
        _turns.reset(token)
        turns.release()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Let the other thread compute while this one waits inside the block.

    Open it around calls of engines and endpoints, not while an adapter is switched or another state
    of the process is changed for a time. The random generators are those of this thread again
    afterwards. Without another thread, and inside another such block, it does nothing.
    """
    turns = _turns.get()
    if turns is None:
        yield
        return
    states = generator_states()
    token = _turns.set(None)
    turns.release()
    try:
        yield
    finally:
        turns.acquire()
        _turns.reset(token)
        restore_generators(states)


def give_way() -> None:
    """Let the other thread compute now, if it waits for its turn."""
    turns = _turns.get()
    if turns is not None and turns.is_wanted:
        with waiting():
            pass
