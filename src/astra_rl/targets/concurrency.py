"""Adaptive limit of concurrent calls (additive increase, multiplicative decrease)."""

from __future__ import annotations

from typing import NamedTuple

DECREASE = 0.9
MAX_PATIENCE = 64


class CallStart(NamedTuple):
    """State of the limit when a call started.

    Attributes:
        epoch: Number of decreases before it.
        level: Calls in flight, including itself.
    """

    epoch: int
    level: int


class AdaptiveLimit:
    """Additive increase, multiplicative decrease (Chiu and Jain 1989) with a remembered ceiling.

    It begins with a slow start: the limit grows by one per success until a call fails by overload.
    An overload lowers the limit by a tenth, and the number of calls in flight before the failed one
    is remembered as the ceiling. The limit returns to the ceiling quickly and probes above it
    rarely: after one round of successes, and after twice as many each time that a probe fails. So a
    fixed limit of an endpoint causes few failures. A success of a call that started above the
    ceiling shows spare capacity and restarts the slow start, so that an overload with a temporary
    cause has little effect.

    Calls that started before the last decrease do not decrease the limit again: they failed for the
    same reason.

    Args:
        start: Limit at the start.
        most: Highest limit.

    Attributes:
        value: The limit as a real number; `allowed` is the limit as an integer.
    """

    def __init__(self, start: int, most: int) -> None:
        self.most = most
        self.value = float(min(start, most))
        self._ceiling = most
        self._patience = 1
        self._slow_start = True
        self._epoch = 0

    @property
    def allowed(self) -> int:
        """Most calls in flight, at least 1."""
        return max(1, int(self.value))

    def call_started(self, in_flight: int) -> CallStart:
        """Return the state for a call that starts; `in_flight` includes it."""
        return CallStart(self._epoch, in_flight)

    def succeeded(self, call: CallStart, in_flight: int) -> None:
        """Raise the limit after a success; `in_flight` includes the call."""
        if call.level > self._ceiling:
            self._ceiling, self._patience, self._slow_start = call.level, 1, True
        if in_flight < self.allowed:  # the limit was not the bottleneck
            return
        step = 1 / (self.value * self._patience)
        if self._slow_start:
            step = 1.0
        elif self.value < self._ceiling:
            step = min(1.0, self._ceiling - self.value)
        self.value = min(float(self.most), self.value + step)

    def overloaded(self, call: CallStart) -> None:
        """Lower the limit after an overload."""
        if call.epoch < self._epoch:
            return
        self._epoch += 1
        if not self._slow_start and call.level > self._ceiling:
            self._patience = min(MAX_PATIENCE, 2 * self._patience)
        else:
            self._ceiling, self._patience = max(1, call.level - 1), 1
        self._slow_start = False
        self.value = max(1.0, self.value * DECREASE)
