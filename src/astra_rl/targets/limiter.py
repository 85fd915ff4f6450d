"""How many calls may be under way at once: found by trying, as congestion control does."""

from __future__ import annotations

DECREASE = 0.9
MAX_PATIENCE = 64


class AdaptiveLimit:
    """Additive increase, multiplicative decrease (Chiu and Jain 1989).

    It begins with a slow start: one more call for each that succeeds, until the endpoint says that
    it is too much. From then on it takes a full round of successes to add one, and a refusal takes
    a tenth away. Where going above a number of calls was refused, it goes back to that number soon
    and above it ever more rarely, so that a fixed limit of the endpoint costs next to nothing.

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
        self._ceiling = float(most)
        self._patience = 1
        self._slow_start = True
        self._epoch = 0

    @property
    def allowed(self) -> int:
        """How many calls may be under way, at least 1."""
        return max(1, int(self.value))

    def begun(self) -> int:
        """Return a token for a call that begins now, to be given back when it ends."""
        return self._epoch

    def succeeded(self, under_way: int) -> None:
        """A call succeeded while so many, itself included, were under way."""
        if under_way < self.allowed:  # the limit was not what held anything up
            return
        if self._slow_start:
            step = 1.0
        elif self.value < self._ceiling:
            step = min(1 / self.value, self._ceiling - self.value)
        else:
            step = 1 / (self.value * self._patience)
        self.value = min(float(self.most), self.value + step)
        if self.value >= self._ceiling + 1:  # what was too much once is fine now
            self._ceiling, self._patience = self.value, 1

    def overloaded(self, token: int, under_way: int) -> None:
        """A call was refused because too much was asked at once."""
        if token < self._epoch:
            return
        self._epoch += 1
        if not self._slow_start and under_way > self._ceiling:
            self._patience = min(MAX_PATIENCE, 2 * self._patience)
        else:
            self._ceiling, self._patience = float(max(1, under_way - 1)), 1
        self._slow_start = False
        self.value = max(1.0, min(self.value, under_way) * DECREASE)
