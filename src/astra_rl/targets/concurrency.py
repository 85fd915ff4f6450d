"""How many calls may be under way at once: found by trying, as congestion control does."""

from __future__ import annotations

from typing import NamedTuple

DECREASE = 0.9
MAX_PATIENCE = 64


class Begun(NamedTuple):
    """When a call began.

    Attributes:
        epoch: After so many decreases.
        level: How many calls were under way then, itself included.
    """

    epoch: int
    level: int


class AdaptiveLimit:
    """Additive increase, multiplicative decrease (Chiu and Jain 1989), with a memory.

    It begins with a slow start: one more call for each that succeeds, until a call is refused
    because too much was asked at once. That takes a tenth away, and the number of calls under way
    before the refused one is remembered as the ceiling. The limit goes back to the ceiling soon and
    above it rarely: after a round of successes, and after twice as many for each time that this
    was refused again. So a fixed limit of an endpoint costs next to nothing. A call that began
    above the ceiling and succeeds shows that there is more room: the slow start begins again. So
    a refusal that had another reason costs next to nothing either.

    Calls that began before the last decrease do not decrease it again: they were all sent too
    early, for the same reason.

    Args:
        start: Calls at the start.
        most: Never more.

    Attributes:
        value: The limit, a real number; `allowed` is what it allows.
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
        """How many calls may be under way, at least 1."""
        return max(1, int(self.value))

    def begun(self, under_way: int) -> Begun:
        """Note that a call begins, so that now so many are under way."""
        return Begun(self._epoch, under_way)

    def succeeded(self, call: Begun, under_way: int) -> None:
        """A call succeeded while so many, itself included, were under way."""
        if call.level > self._ceiling:
            self._ceiling, self._patience, self._slow_start = call.level, 1, True
        if under_way < self.allowed:  # the limit was not what held anything up
            return
        step = 1 / (self.value * self._patience)
        if self._slow_start:
            step = 1.0
        elif self.value < self._ceiling:
            step = min(1.0, self._ceiling - self.value)
        self.value = min(float(self.most), self.value + step)

    def overloaded(self, call: Begun) -> None:
        """A call was refused because too much was asked at once."""
        if call.epoch < self._epoch:
            return
        self._epoch += 1
        if not self._slow_start and call.level > self._ceiling:
            self._patience = min(MAX_PATIENCE, 2 * self._patience)
        else:
            self._ceiling, self._patience = max(1, call.level - 1), 1
        self._slow_start = False
        self.value = max(1.0, self.value * DECREASE)
