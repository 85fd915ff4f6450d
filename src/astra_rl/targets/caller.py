"""Concurrent calls of one endpoint: limits, retries, and giving up."""

from __future__ import annotations

import asyncio
import heapq
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from astra_rl.core.contracts import check_number
from astra_rl.core.text import NoReply, NotSent
from astra_rl.core.turns import waiting
from astra_rl.errors import BudgetSpentError, EndpointError
from astra_rl.infra.redaction import redact_message
from astra_rl.logging import logger
from astra_rl.targets.accounts import Reserved
from astra_rl.targets.budget import Prices, TokenBound, Usage
from astra_rl.targets.call_errors import BROKEN_HTTP, NO_CONNECTION, CallError
from astra_rl.targets.concurrency import AdaptiveLimit, CallStart
from astra_rl.targets.ledger import Ledger, current_ledger

ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")

WARN_EVERY = 30.0
"""Least seconds between two warnings about retries."""


@dataclass(frozen=True)
class CallSettings:
    """Concurrency, retries and timeouts of the calls of an endpoint.

    Attributes:
        concurrency: Most concurrent calls. Below it the number adapts to the endpoint.
        start_concurrency: Concurrent calls at the start.
        max_tries: Most attempts per call, including the first.
        timeout: Most seconds per attempt.
        max_wait: Most seconds between two attempts. If the endpoint asks to wait longer, the call
            fails.
        first_wait: Least seconds before the second attempt, doubled for each further one (with
            jitter of a factor from 0.5 to 1.5). A longer ``Retry-After`` of the endpoint takes
            precedence; a shorter one does not, so ``Retry-After: 0`` does not use up all attempts
            at once.
        give_up_after: Raise `EndpointError` after this many consecutive calls that failed for the
            same reason with all attempts used.
        max_reply_bytes: Most bytes of a reply; a longer one is a failure.
        requests_per_minute: Rate limit; None is no limit.
    """

    concurrency: int = 64
    start_concurrency: int = 20
    max_tries: int = 6
    timeout: float = 60.0
    max_wait: float = 120.0
    first_wait: float = 0.5
    give_up_after: int = 20
    max_reply_bytes: int = 1_000_000
    requests_per_minute: float | None = None

    def __post_init__(self) -> None:
        values = asdict(self)
        for name in ("concurrency", "start_concurrency", "max_tries", "give_up_after"):
            check_number(name, values[name], lambda n: n >= 1 and n == int(n), "1 or more")
        for name in ("timeout", "max_wait", "first_wait", "max_reply_bytes"):
            check_number(name, values[name], lambda n: n > 0, "above 0")
        if self.requests_per_minute is not None:
            check_number(
                "requests_per_minute", self.requests_per_minute, lambda n: n > 0, "above 0"
            )


@dataclass(frozen=True)
class Answer(Generic[ValueT]):
    """Value of a call, and its token usage; None if tokens are not counted."""

    value: ValueT
    usage: Usage | None = None


Send = Callable[[ItemT], Awaitable[Answer[ValueT]]]
"""Makes one attempt of a call; raises `CallError` if it fails."""
Connect = Callable[[], AbstractAsyncContextManager[Send[ItemT, ValueT]]]
"""Opens a connection for a batch of calls."""


class Caller:
    """Makes batches of calls of one endpoint.

    The adaptive concurrency limit and the count of consecutive failures persist between batches.

    Args:
        name: Name of the endpoint in the ledger and in errors.
        settings: Concurrency, retries and timeouts.
        prices: Prices of its tokens; None if they are unknown.
    """

    def __init__(
        self,
        name: str,
        settings: CallSettings,
        *,
        prices: Prices | None = None,
    ) -> None:
        self.name, self.settings, self.prices = name, settings, prices
        self.limit = AdaptiveLimit(settings.start_concurrency, settings.concurrency)
        self.failures_in_a_row = 0
        self.last_reason = ""
        self.not_before = 0.0
        self._warned = -math.inf

    def call(
        self,
        connect: Connect[ItemT, ValueT],
        items: Sequence[ItemT],
        *,
        answered: Callable[[int, ValueT], None] = lambda index, value: None,
        token_bound: Callable[[ItemT], TokenBound] = lambda item: TokenBound(),
    ) -> list[ValueT | NoReply]:
        """Make one call per item and return the values in order; `NoReply` where a call failed.

        Args:
            connect: Opens a connection for the batch.
            items: The inputs.
            answered: Called with the index and the value of each item as soon as it is known.
            token_bound: Returns an upper bound of the tokens of an item's call.

        Raises:
            EndpointError: Every further call would fail too. `answered` was called for all values
                received so far.
            BudgetSpentError: The budget is spent; the same.
        """
        if not items:
            return []
        ledger = current_ledger()
        if ledger.is_closed:
            return [NotSent() for _ in items]
        batch = _Batch(self, items, ledger, answered, token_bound)
        return run_in_background(batch.run(connect))

    def warn(self, error: CallError) -> None:
        """Log that a call is retried, at most once per `WARN_EVERY` seconds."""
        now = time.monotonic()
        if now - self._warned >= WARN_EVERY:
            self._warned = now
            why = f" ({error.detail})" if error.reason in (NO_CONNECTION, BROKEN_HTTP) else ""
            logger.warning("%s: %s%s; retrying", self.name, error.reason, why)


@dataclass(order=True)
class _Waiting:
    ready: float
    index: int
    tries: int = field(compare=False, default=0)


class _Batch(Generic[ItemT, ValueT]):
    """The calls of one batch. All of them run in one thread, so nothing needs a lock."""

    def __init__(
        self,
        caller: Caller,
        items: Sequence[ItemT],
        ledger: Ledger,
        answered: Callable[[int, ValueT], None],
        token_bound: Callable[[ItemT], TokenBound],
    ) -> None:
        self.caller, self.items, self.ledger = caller, items, ledger
        self.answered, self.token_bound = answered, token_bound
        self.settings = caller.settings
        self.values: dict[int, ValueT | NoReply] = {}
        self.new = deque(_Waiting(0.0, index) for index in range(len(items)))
        self.retries: list[_Waiting] = []
        self.running: set[asyncio.Task[None]] = set()
        self.done: asyncio.Queue[tuple[_Waiting, CallStart, Answer[ValueT] | CallError]] = (
            asyncio.Queue()
        )
        self.reserved: dict[int, Reserved] = {}
        self.jitter = random.Random()  # its own generator: waiting must not change what is sampled
        self.in_flight = 0
        self.stopped: Exception | None = None
        self.given_up = False
        self.next_start = 0.0

    async def run(self, connect: Connect[ItemT, ValueT]) -> list[ValueT | NoReply]:
        async with connect() as send:
            try:
                # Calls in flight when a budget is spent are paid for, so they are awaited.
                while not self.given_up and (self.in_flight or self._is_waiting):
                    waits = (self._start_calls(send), self.ledger.persist())
                    known = [wait for wait in waits if wait is not None]
                    await self._take_results(min(known, default=None))
            finally:
                for task in self.running:
                    task.cancel()
                await asyncio.gather(*self.running, return_exceptions=True)
                self._settle_the_rest()
        if self.stopped is not None:
            raise self.stopped
        return [self.values[index] for index in range(len(self.items))]

    @property
    def _is_waiting(self) -> bool:
        return self.stopped is None and bool(self.new or self.retries)

    def _start_calls(self, send: Send[ItemT, ValueT]) -> float | None:
        """Start all calls that may start; return the seconds until another one may."""
        while self._is_waiting:
            now = time.monotonic()
            # Retries go first, so that an endpoint that is down is noticed early.
            use_new = bool(self.new) and not (self.retries and self.retries[0].ready <= now)
            ready = 0.0 if use_new else self.retries[0].ready
            ready = max(ready, self.caller.not_before, self.next_start)
            if ready > now:
                return ready - now
            if self.in_flight >= self.caller.limit.allowed:
                return None
            call = self.new[0] if use_new else self.retries[0]
            try:
                self.reserved[call.index] = self.ledger.admit(
                    self.caller.name, self.token_bound(self.items[call.index]), self.caller.prices
                )
            except BudgetSpentError as error:
                if self.in_flight:  # they may use less than is reserved for them
                    return None
                self.stopped = self.ledger.spent_by = error
                return 0.0
            if self.settings.requests_per_minute is not None:
                self.next_start = now + 60 / self.settings.requests_per_minute
            if use_new:
                self.new.popleft()
            else:
                heapq.heappop(self.retries)
            self.in_flight += 1
            start = self.caller.limit.call_started(self.in_flight)
            task = asyncio.ensure_future(self._try(send, call, start))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        return None

    async def _try(self, send: Send[ItemT, ValueT], call: _Waiting, start: CallStart) -> None:
        result: Answer[ValueT] | CallError
        try:
            async with asyncio.timeout(self.settings.timeout):
                result = await send(self.items[call.index])
        except CallError as error:
            result = error
        except TimeoutError:
            result = CallError("timed out", retryable=True, overload=True)
        except Exception as error:  # any other exception fails this call only
            result = CallError(f"client error {type(error).__name__}")
        self.done.put_nowait((call, start, result))

    async def _take_results(self, wait: float | None) -> None:
        try:
            async with asyncio.timeout(wait):
                first = await self.done.get()
        except TimeoutError:
            return
        at_once = self.in_flight
        self._take(*first, at_once)
        while not self.done.empty():
            self._take(*self.done.get_nowait(), at_once)

    def _take(
        self, call: _Waiting, start: CallStart, result: Answer[ValueT] | CallError, at_once: int
    ) -> None:
        self.in_flight -= 1
        reserved = self.reserved.pop(call.index)
        # A reply is paid for, whether or not it can be used.
        self.ledger.settle(reserved, result.usage, self.caller.prices)
        if isinstance(result, CallError):
            self._failed(call, start, result)
        else:
            self.caller.limit.succeeded(start, at_once)
            self._succeeded(call, result)

    def _settle_the_rest(self) -> None:
        """Count results that were received but not yet processed, and release all reservations."""
        try:
            while not self.done.empty():
                call, _, result = self.done.get_nowait()
                reserved = self.reserved.pop(call.index)
                self.ledger.settle(reserved, result.usage, self.caller.prices)
                if not isinstance(result, CallError):
                    self._succeeded(call, result)
        finally:
            for reserved in self.reserved.values():
                self.ledger.settle(reserved)

    def _succeeded(self, call: _Waiting, answer: Answer[ValueT]) -> None:
        self.caller.failures_in_a_row = 0
        self.values[call.index] = answer.value
        self.answered(call.index, answer.value)

    def _failed(self, call: _Waiting, start: CallStart, error: CallError) -> None:
        caller, now = self.caller, time.monotonic()
        self.ledger.failed(caller.name)
        tries, requested = call.tries + 1, error.retry_after or 0.0
        may_wait = requested <= self.settings.max_wait
        if error.overload:
            caller.limit.overloaded(start)
            if may_wait:
                caller.not_before = max(caller.not_before, now + requested)
        if error.retryable and may_wait and tries < self.settings.max_tries:
            caller.warn(error)
            backoff = self.settings.first_wait * 2 ** (tries - 1) * (0.5 + self.jitter.random())
            backoff = min(backoff, self.settings.max_wait)
            wait = now + max(backoff, requested)
            heapq.heappush(self.retries, _Waiting(wait, call.index, tries))
            return
        detail = redact_message(error.detail)
        if error.retryable and not may_wait:
            most = f"max_wait={self.settings.max_wait:,.8g}"
            detail += f" (it asks to wait {requested:,.8g} s, more than {most})"
        self.values[call.index] = NoReply(error.reason, detail)
        same = error.reason == caller.last_reason
        caller.failures_in_a_row = caller.failures_in_a_row + 1 if same else 1
        caller.last_reason = error.reason
        if error.permanent:
            self._stop(f"{error.reason} ({detail})", error.advice)
        elif caller.failures_in_a_row >= self.settings.give_up_after:
            count = caller.failures_in_a_row
            caller.failures_in_a_row = 0  # the count starts again if the caller continues
            self._stop(
                f"{count} consecutive calls failed: {error.reason} ({detail})",
                "fix it, or raise give_up_after",
            )

    def _stop(self, what: str, advice: str) -> None:
        self.given_up = True
        self.stopped = EndpointError(f"{self.caller.name}: {what}; {advice}.")


class _Background:
    """An event loop in a background thread.

    It also works inside a running event loop, as in a notebook, where no other can be started.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self.loop.run_forever, name="astra-calls", daemon=True)
        thread.start()


_background: _Background | None = None
_background_lock = threading.Lock()


def run_in_background(work: Coroutine[Any, Any, ValueT]) -> ValueT:
    """Run a coroutine in the background loop and return its result; an interrupt cancels it."""
    global _background
    with _background_lock:
        if _background is None or _background.pid != os.getpid():  # threads do not survive a fork
            _background = _Background()
    future = asyncio.run_coroutine_threadsafe(work, _background.loop)
    try:
        with waiting():
            return future.result()
    except BaseException:
        future.cancel()
        raise
