"""Fault tolerance: failures of a moderator become missing scores."""

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
from astra_rl.core.turns import lending
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
"""After this many consecutive texts that raise, the rest of a call is skipped."""
GRACE = 10.0
"""Seconds after a time limit until the tracebacks of a blocked process are printed."""
_STDERR = 2


class FaultTolerantModerator(Moderator[StateT, ActionT]):
    """Turns failures of another moderator into missing scores, each with its reason.

    A call that raises, or that returns another number of scores, is repeated text by text, so that
    one text does not affect the others. Scores are missing if a call exceeds the time limit, or if
    they are not numbers in [0, 1]. Configuration errors are still raised.

    If the moderator has never returned a score, its failure is raised as an error.

    Args:
        inner: The moderator.
        time_limit: Most seconds per call; None is no limit. A call that exceeds it continues in the
            background, and the next call waits for it. Code that never releases the GIL, such as a
            regular expression, cannot be abandoned: the process waits for it and prints where it
            is; see `StallWatchdog`.

    Raises:
        ConfigurationError: `time_limit` is not positive.
    """

    def __init__(
        self, inner: Moderator[StateT, ActionT], *, time_limit: float | None = None
    ) -> None:
        if time_limit is not None and not time_limit > 0:
            raise ConfigurationError(
                f"time_limit={time_limit}; it must be positive, or None for no limit."
            )
        self.inner = inner
        self.time_limit = time_limit
        self._worker = _Worker()
        self._has_scored = False

    @property
    def identity_stands_for(self) -> Moderator[StateT, ActionT]:
        """The wrapped moderator."""
        return self.inner

    def moderate(self, x: Sequence[StateT | ActionT]) -> list[float]:
        """Score each text in [0, 1]; missing, with a reason, where `inner` failed.

        Raises:
            ModeratorError: `inner` failed and has never returned a score.
            ContractError: The same, if `inner` broke the contract of a moderator.
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
                f"the moderator {self._name} has never returned a score: {_describe(error)}. "
                "Fix it and run the command again."
            ) from error
        return scores

    def forget(self) -> None:
        """Call `forget` of `inner`."""
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
            logger.warning("the moderator %s failed: %s", self._name, _describe(error))
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


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


class StallWatchdog:
    """Prints the tracebacks of all threads while a call blocks the whole process.

    Code that never releases the GIL cannot be interrupted: no other thread runs and Ctrl-C is not
    handled. The watchdog of the standard library needs no GIL; it writes the file and line of every
    thread to stderr. It cannot end the call: kill the process and resume the run.

    A process has only one such watchdog: one that was set with
    ``faulthandler.dump_traceback_later`` elsewhere is cancelled.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: list[float] = []

    @contextlib.contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """Print tracebacks if the block takes longer than `seconds` and `GRACE`."""
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
        if self._deadlines:  # several for nested moderators
            wait = min(self._deadlines) - time.monotonic()
            faulthandler.dump_traceback_later(max(wait, 0.001), file=_STDERR)
        else:
            faulthandler.cancel_dump_traceback_later()


_watchdog = StallWatchdog()


class _Worker:
    """A daemon thread that runs one task at a time, with a time limit."""

    def __init__(self) -> None:
        self._free = threading.Semaphore()
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._started = False

    def run(self, task: Callable[[], Any], seconds: float) -> Any:
        """Return the result of the task.

        Raises:
            TimeoutError: The task took longer than `seconds`.
        """
        if not self._free.acquire(timeout=seconds):
            raise TimeoutError(f"still busy with an earlier call after {seconds:g} s")
        if not self._started:
            # A daemon, so that a task that hangs does not prevent the process from ending.
            threading.Thread(target=self._work, name="moderator", daemon=True).start()
            self._started = True
        with lending():
            return self._result(task, seconds)

    def _result(self, task: Callable[[], Any], seconds: float) -> Any:
        future: Future[Any] = Future()
        context, with_gradients = contextvars.copy_context(), torch.is_grad_enabled()
        deadline = time.monotonic() + seconds

        def work() -> None:
            try:
                with torch.set_grad_enabled(with_gradients):
                    result = context.run(task)
                if time.monotonic() > deadline:  # the other thread could not run meanwhile
                    raise TimeoutError(f"no score within {seconds:g} s")
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with _watchdog.watched(seconds):  # before the task, which may never let this thread run
            self._tasks.put(work)
            try:
                return future.result(timeout=seconds)
            except TimeoutError:
                if future.done():  # the task itself raised one
                    raise
                raise TimeoutError(f"no score within {seconds:g} s") from None

    def _work(self) -> None:
        while True:
            self._tasks.get()()
            self._free.release()
