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
    """Those that compute in turns, in the order in which they asked; the first has the turn."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.line: deque[_Place] = deque()

    @property
    def is_wanted(self) -> bool:
        """Whether another thread waits for the turn."""
        return len(self.line) > 1


class _Place:
    """A place in the line."""

    def __init__(self, owner: _Turn) -> None:
        self.owner = owner


class _Turn:
    """The turn of a thread, and of the helpers that it lends it to."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def acquire(self) -> bool:
        """Wait for the turn; return True.

        A thread that is interrupted meanwhile keeps its place, and must give it away with `release`
        like one that has the turn: what it leaves on its way out does so.
        """
        turns, place = self._turns, _Place(self)
        with turns.changed:
            turns.line.append(place)
            turns.changed.wait_for(lambda: turns.line[0] is place)
        return True

    def release(self) -> None:
        """Give the turn to the thread that waits longest."""
        turns = self._turns
        with turns.changed:
            turns.line.remove(next(each for each in turns.line if each.owner is self))
            turns.changed.notify_all()

    @property
    def is_wanted(self) -> bool:
        """See `Turns.is_wanted`."""
        return self._turns.is_wanted


class _Lent:
    """The turn of a thread that waits for a helper, which computes in it; see `lending`."""

    def __init__(self, turns: _Turn | _Lent) -> None:
        self._turns = turns
        self._lock = threading.Lock()
        self._is_held, self._is_over = True, False

    def acquire(self) -> bool:
        """Wait for the turn; return whether there still is one."""
        if self._is_over or not self._turns.acquire():
            return False
        with self._lock:
            is_held = self._is_held = not self._is_over
        if not is_held:
            self._turns.release()
        return is_held

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


_turns: ContextVar[_Turn | _Lent | None] = ContextVar("turns", default=None)


@contextlib.contextmanager
def taking_turns(turns: Turns) -> Iterator[None]:
    """Compute the block in a turn; threads that it starts with a copy of its context share them."""
    turn, token = _Turn(turns), None
    try:
        turn.acquire()
        token = _turns.set(turn)
        yield
    finally:
        if token is not None:
            _turns.reset(token)
        turn.release()


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
        try:
            has_turn = turns.acquire()
        finally:
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
