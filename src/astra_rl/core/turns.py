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

    def acquire(self) -> bool:
        """Wait for the turn; return True."""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                self._changed.wait_for(lambda: self._line[0] is ticket)
            except BaseException:  # an interrupt
                self._line.remove(ticket)
                self._changed.notify_all()
                raise
        return True

    def release(self) -> None:
        """Give the turn to the thread that waits longest."""
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()

    @property
    def is_wanted(self) -> bool:
        """Whether another thread waits for the turn."""
        return len(self._line) > 1


class _Lent:
    """The turn of a thread that waits for a helper, which computes in it; see `lending`."""

    def __init__(self, turns: Turns | _Lent) -> None:
        self._turns = turns
        self._lock = threading.Lock()
        self._is_held, self._is_over = True, False

    def acquire(self) -> bool:
        """Wait for the turn; return whether there still is one."""
        if self._is_over or not self._turns.acquire():
            return False
        with self._lock:
            self._is_held = not self._is_over
        if self._is_over:
            self._turns.release()
        return not self._is_over

    def release(self) -> None:
        """Give the turn away, if there still is one."""
        with self._lock:
            if self._is_over:
                return
            self._is_held = False
        self._turns.release()

    @property
    def is_wanted(self) -> bool:
        """See `Turns.is_wanted`."""
        return self._turns.is_wanted and not self._is_over

    def take_back(self) -> bool:
        """End it; return whether the helper had given the turn away."""
        with self._lock:
            self._is_over = True
            is_away = not self._is_held
        return is_away and self._turns.acquire()


_turns: ContextVar[Turns | _Lent | None] = ContextVar("turns", default=None)


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
        has_turn = turns.acquire()
        _turns.reset(token)
        if has_turn:
            restore_generators(states)


@contextlib.contextmanager
def lending() -> Iterator[None]:
    """Let a helper compute in the turn of this thread, which waits for it inside the block.

    The helper is a thread with a copy of the context inside the block. It may give the turn away
    where it waits, see `waiting`. One that is still busy after the block, because it took too long,
    has no turn any more, and takes none.
    """
    turns = _turns.get()
    if turns is None:
        yield
        return
    lent, states = _Lent(turns), generator_states()
    token = _turns.set(lent)
    try:
        yield
    finally:
        _turns.reset(token)
        if lent.take_back():
            restore_generators(states)


def give_way() -> None:
    """Let the other thread compute now, if it waits for its turn."""
    turns = _turns.get()
    if turns is not None and turns.is_wanted:
        with waiting():
            pass
