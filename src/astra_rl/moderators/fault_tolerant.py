"""A moderator that fails now and then costs scores, and not the run."""

from __future__ import annotations

import contextlib
import contextvars
import faulthandler
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import torch

from astra_rl.core.common import ActionT, StateT
from astra_rl.core.contracts import check_length, is_missing
from astra_rl.core.moderator import Moderator, Score
from astra_rl.errors import (
    AstraError,
    ConfigurationError,
    ContractError,
    ModelError,
    ModeratorError,
    first_line,
)
from astra_rl.logging import logger
from astra_rl.moderators.identity import identity_of

GIVE_UP_AFTER = 3
"""So many texts in a row that raise, and the rest of a call is not tried any more."""
GRACE = 10.0
"""Seconds beyond a time limit after which what holds the process up is said."""
_STDERR = 2


class FaultTolerantModerator(Moderator[StateT, ActionT]):
    """Makes missing scores, each with its reason, of what goes wrong in another moderator.

    A call that raises, or returns another number of scores than it was asked for, is made again
    text by text, so that one text costs the others nothing. A call that takes too long, and scores
    that are no numbers in [0, 1], are missing. What is wrong with the settings is still raised.

    A moderator that never gave a score is not excused: its first failure is an error.

    Args:
        inner: What judges.
        time_limit: Seconds that a call may take; None waits for ever. A call that took longer goes
            on in the background, and the next one waits for it. Code that holds Python's global
            lock all the time, as a regular expression does, cannot be left: the process waits until
            it is done, and says so, see `Stalls`.

    Raises:
        ConfigurationError: `time_limit` is not positive.
    """

    def __init__(
        self, inner: Moderator[StateT, ActionT], *, time_limit: float | None = None
    ) -> None:
        if time_limit is not None and not time_limit > 0:
            raise ConfigurationError(f"time_limit={time_limit}; it must be positive, or null.")
        self.inner = inner
        self.time_limit = time_limit
        self._worker = _Worker()
        self._has_scored = False

    @property
    def identity_stands_for(self) -> Moderator[StateT, ActionT]:
        """Whose scores these are."""
        return self.inner

    def moderate(self, x: Sequence[StateT | ActionT]) -> list[float]:
        """Score each text in [0, 1]; missing, with the reason, where `inner` failed.

        Raises:
            ModeratorError: `inner` failed, and has never given a score.
            ContractError: The same, if it broke its contract.
        """
        if not x:
            return []
        scores, error = self._try(x)
        if isinstance(error, ContractError) and not self._has_scored:
            raise error
        if error is not None and len(x) > 1 and not isinstance(error, TimeoutError):
            scores, error = self._one_by_one(x)
        self._has_scored = self._has_scored or not all(map(is_missing, scores))
        if error is not None and not self._has_scored:
            raise ModeratorError(
                f"the moderator {self._name} has never given a score: {_says(error)}. Mend it, and "
                "start the same command again."
            ) from error
        return scores

    def forget(self) -> None:
        """Let `inner` forget."""
        self.inner.forget()

    @property
    def _name(self) -> str:
        return identity_of(self.inner).name

    def _one_by_one(self, x: Sequence[StateT | ActionT]) -> tuple[list[float], Exception | None]:
        scores: list[float] = []
        last: Exception | None = None
        in_a_row = 0
        for text in x:
            (score,), error = self._try([text])
            scores.append(score)
            last = error or last
            in_a_row = 0 if error is None else in_a_row + 1
            if in_a_row == GIVE_UP_AFTER:
                scores += [score] * (len(x) - len(scores))
                break
        return scores, last

    def _try(self, x: Sequence[StateT | ActionT]) -> tuple[list[float], Exception | None]:
        try:
            scores = self._within_time(lambda: self._checked(x))
        except Exception as error:
            if isinstance(error, AstraError) and not isinstance(error, ContractError | ModelError):
                raise
            logger.warning("the moderator %s failed: %s", self._name, _says(error))
            reason = "took too long" if isinstance(error, TimeoutError) else _reason(error)
            return [Score.missing(reason)] * len(x), error
        return scores, None

    def _checked(self, x: Sequence[StateT | ActionT]) -> list[float]:
        scores = list(self.inner.moderate(x))
        check_length(scores, len(x), source=self._name)
        return [Score.checked(score) for score in scores]

    def _within_time(self, judge: Callable[[], list[float]]) -> list[float]:
        if self.time_limit is None:
            return judge()
        scores: list[float] = self._worker.run(judge, self.time_limit)
        return scores


def _reason(error: Exception) -> str:
    return f"the moderator raised {type(error).__name__}"


def _says(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


class Stalls:
    """Says what holds the process up where nothing in it can act any more.

    A time limit is of no use against code that never gives Python's global lock back: no thread
    runs, no signal of Ctrl-C is handled. Then the standard library's watchdog, which needs no lock,
    writes to the standard error output where every thread is, file and line, the moderator's among
    them. It cannot end the call; kill the process, and the run goes on from its last state.

    There is one such watchdog in a process: one that you have set with
    ``faulthandler.dump_traceback_later`` is cancelled.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: list[float] = []

    @contextlib.contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """Watch the block: say where it is after so many seconds, and `GRACE` more."""
        deadline = time.monotonic() + seconds + GRACE
        with self._lock:
            self._deadlines.append(deadline)
            self._arm()
        try:
            yield
        finally:
            with self._lock:
                self._deadlines.remove(deadline)
                self._arm()

    def _arm(self) -> None:
        if self._deadlines:  # of moderators within moderators
            wait = min(self._deadlines) - time.monotonic()
            faulthandler.dump_traceback_later(max(wait, 0.001), file=_STDERR)
        else:
            faulthandler.cancel_dump_traceback_later()


_hold_ups = Stalls()


class _Worker:
    """A thread that does one thing at a time, and that nobody has to wait for."""

    def __init__(self) -> None:
        self._free = threading.Semaphore()
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._started = False

    def run(self, task: Callable[[], Any], seconds: float) -> Any:
        """Return what the task returns.

        Raises:
            TimeoutError: It took longer.
        """
        if not self._free.acquire(timeout=seconds):
            raise TimeoutError(f"busy with an earlier call for another {seconds:g} s")
        if not self._started:
            # A daemon: a task that hangs must not keep the process from ending.
            threading.Thread(target=self._work, name="moderator", daemon=True).start()
            self._started = True
        future: Future[Any] = Future()
        context, with_gradients = contextvars.copy_context(), torch.is_grad_enabled()

        def work() -> None:
            try:
                with torch.set_grad_enabled(with_gradients):
                    result = context.run(task)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._tasks.put(work)
        try:
            with _hold_ups.watched(seconds):
                return future.result(timeout=seconds)
        except TimeoutError:
            if future.done():  # the task itself raised one
                raise
            raise TimeoutError(f"no score within {seconds:g} s") from None

    def _work(self) -> None:
        while True:
            self._tasks.get()()
            self._free.release()
