"""The ledger of calls: what was spent, and whether the budget allows more."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.infra.jsonio import atomic_file, indented, parse_own_json, write_json
from astra_rl.targets.accounts import Account, LedgerFile, Reserved, sum_of
from astra_rl.targets.budget import ASSUMED_OUTPUT, Budget, Prices, TokenBound, Usage

SAVE_EVERY = 0.02
"""Least seconds between two writes of the ledger's file during calls."""


@dataclass
class Ledger:
    """Counts spending and enforces a budget. Thread-safe.

    Before a call is sent, an upper bound of its tokens is reserved, so that concurrent calls cannot
    exceed a limit of tokens or cost. If a reply has no limit, the longest reply of the endpoint so
    far is reserved, or `ASSUMED_OUTPUT`. A call that uses more than its reservation is counted in
    full, and later reservations are raised by the excess.

    A ledger may be part of an outer one, as that of a run in a command of several runs. Its calls
    then count in both, and the limits of both apply.

    Attributes:
        budget: The limits.
        accounts: Spending by name of the endpoint.
        earlier_seconds: Seconds of earlier sessions.
        ended_by: What ended earlier sessions, in words.
        path: File of the ledger; None keeps it in memory only.
        outer: The ledger that this one is part of; None if it stands alone.
        spent_by: The limit that was reached; no more calls are sent then.
        was_spent: Whether a limit was reached in this session, one lowered by `holding` included.
        is_closed: Whether only cached replies are returned; see `closed`.
    """

    budget: Budget = field(default_factory=Budget)
    accounts: dict[str, Account] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    ended_by: list[str] = field(default_factory=list)
    path: Path | None = None
    outer: Ledger | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._started = self.clock()
        self._is_saved, self._saved = True, -math.inf
        self._reserved: list[Reserved] = []
        self._longest: dict[str, int] = {}
        self._excess: dict[str, tuple[int, int]] = {}
        self._held: dict[str, float] = {}
        self.spent_by: BudgetSpentError | None = None
        self.was_spent = False
        self.is_closed = False

    @classmethod
    def open(cls, path: Path, budget: Budget, outer: Ledger | None = None) -> Ledger:
        """Load a ledger from a file, or create one, and set its budget.

        Raises:
            ConfigurationError: The file is not a ledger.
        """
        ledger = cls(budget, path=path, outer=outer)
        if path.is_file():
            try:
                kept = LedgerFile.of(parse_own_json(path.read_text(encoding="utf-8")))
                if kept.accounts is None or kept.seconds is None or kept.ended_by is None:
                    raise ValueError("a field is missing")  # without accounts there is no budget
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"{path} is not a valid ledger ({type(error).__name__}). Restore it, or remove "
                    "it to count from zero."
                ) from error
            ledger.accounts, ledger.earlier_seconds = kept.accounts, kept.seconds
            ledger.ended_by = kept.ended_by
        return ledger

    @property
    def seconds(self) -> float:
        """Seconds of all sessions together."""
        return self.earlier_seconds + self.clock() - self._started

    def total(self) -> Account:
        """Return the sum over all endpoints."""
        with self._lock:
            return sum_of(self.accounts.values())

    def copied(self) -> dict[str, Account]:
        """Return a copy of the accounts, for the argument `since` of `as_dict`."""
        with self._lock:
            return {name: replace(account) for name, account in self.accounts.items()}

    def check(self) -> None:
        """Raise if a limit is reached.

        Raises:
            BudgetSpentError: A limit is reached; it is named.
        """
        with self._lock:
            if self.spent_by is None:
                limits = asdict(self.budget)
                for name, value in self._spent().items():
                    most, held = limits[name], self._held.get(name, 0.0)
                    if most is not None and value >= most - held:
                        self.spent_by = BudgetSpentError(name, most, value, held=held)
                        break
            if self.spent_by is not None:
                self.was_spent = True
                raise self.spent_by
        if self.outer is not None:
            with self._noting_end():
                self.outer.check()

    def admit(
        self, name: str, token_bound: TokenBound | None = None, prices: Prices | None = None
    ) -> Reserved:
        """Count a request that is about to be sent, and reserve its upper bound.

        `settle` releases the reservation.

        Raises:
            BudgetSpentError: A limit is reached, or could be exceeded together with the
                reservations of the calls in flight.
        """
        with self._lock:
            self.check()
            needed = self._reservation(name, token_bound or TokenBound(), prices)
            spent, known = self._spent(), [*self._reserved, needed]
            reservations = {
                "max_tokens": sum(each.input + each.output for each in known),
                "max_cost": sum(each.cost for each in known),
            }
            limits = asdict(self.budget)
            for limit, reserved in reservations.items():
                most, held = limits[limit], self._held.get(limit, 0.0)
                if most is not None and spent[limit] + reserved > most - held:
                    self.was_spent = True
                    raise BudgetSpentError(limit, most, spent[limit], reserved, held)
            if self.outer is not None:
                with self._noting_end():
                    outer = self.outer.admit(name, token_bound, prices)
                needed = needed._replace(outer=outer)
            self._reserved.append(needed)
            self._account(name).requests += 1
            self._is_saved = False
            return needed

    def settle(
        self, reserved: Reserved, usage: Usage | None = None, prices: Prices | None = None
    ) -> None:
        """Release the reservation of a finished call, and count its usage."""
        if self.outer is not None and reserved.outer is not None:
            self.outer.settle(reserved.outer, usage, prices)
        with self._lock:
            self._reserved.remove(reserved)
            if usage is None:
                return
            name = reserved.name
            self._longest[name] = max(self._longest.get(name, 0), usage.output)
            more_input, more_output = self._excess.get(name, (0, 0))
            bound = (
                usage.output if reserved.token_bound.output is None else reserved.token_bound.output
            )
            self._excess[name] = (
                max(more_input, usage.input - reserved.token_bound.input),
                max(more_output, usage.output - bound),
            )
            self.charge(name, usage, prices)

    def _reservation(self, name: str, token_bound: TokenBound, prices: Prices | None) -> Reserved:
        more_input, more_output = self._excess.get(name, (0, 0))
        inputs = token_bound.input + more_input
        if token_bound.output is None:
            outputs = self._longest.get(name) or ASSUMED_OUTPUT
        else:
            outputs = token_bound.output + more_output
        cost = 0.0 if prices is None else prices.cost_of(inputs, outputs)
        return Reserved(name, token_bound, inputs, outputs, cost)

    def _spent(self) -> dict[str, float]:
        total = self.total()
        return {
            "max_requests": total.requests,
            "max_tokens": total.input_tokens + total.output_tokens,
            "max_cost": total.cost,
            "max_minutes": self.seconds / 60,
        }

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Send no calls inside the block: replies that are not cached are `NoReply`."""
        self.is_closed = True
        try:
            yield
        finally:
            self.is_closed = False

    @contextlib.contextmanager
    def holding(self, amounts: Mapping[str, float]) -> Iterator[None]:
        """Keep a part of the budget for later work: inside the block the limits are lower.

        Args:
            amounts: What to keep, by name of the limit.
        """
        self._held = dict(amounts)
        try:
            with contextlib.nullcontext() if self.outer is None else self.outer.holding(amounts):
                yield
        finally:
            self._held = {}
            self.spent_by = None  # by the lower limit; another is found by the next check

    def affords(self, amounts: Mapping[str, float] | None) -> bool:
        """Whether the budget cannot end work that needs at most these amounts, twice over.

        The reserve is for calls that are tried again. True without a budget.

        Args:
            amounts: By name of the limit; None is unknown. The time that work needs is never known.
        """
        if self.outer is not None and not self.outer.affords(amounts):
            return False
        if self.budget == Budget():
            return True
        with self._lock:
            spent, limits = self._spent(), asdict(self.budget)
            return amounts is not None and all(
                most is None
                or spent[name] + 2 * amounts.get(name, math.inf) <= most - self._held.get(name, 0.0)
                for name, most in limits.items()
            )

    def calls_left(self) -> float:
        """Return how many calls the budget may still pay for, by the spending per request so far.

        Infinite without a limit, or if nothing was spent of the limited amounts yet.
        """
        with self._lock:
            spent, limits = self._spent(), asdict(self.budget)
            requests = max(1, self.total().requests)
            left = [
                (most - self._held.get(name, 0.0) - spent[name]) * requests / spent[name]
                if spent[name]
                else (most if name == "max_requests" else math.inf)
                for name, most in limits.items()
                if most is not None
            ]
        outer = math.inf if self.outer is None else self.outer.calls_left()
        return max(0.0, min([*left, outer]))

    def failed(self, name: str) -> None:
        """Count a failed request."""
        with self._lock:
            self._account(name).failed_tries += 1
            self._is_saved = False
        if self.outer is not None:
            self.outer.failed(name)

    def cached(self, name: str, count: int) -> None:
        """Count replies from the cache."""
        with self._lock:
            self._account(name).cached += count
        if self.outer is not None:
            self.outer.cached(name, count)

    def charge(self, name: str, usage: Usage, prices: Prices | None) -> None:
        """Count the usage and cost of a reply."""
        with self._lock:
            account = self._account(name)
            account.input_tokens += usage.input
            account.output_tokens += usage.output
            if usage.estimated:
                account.estimated_tokens += usage.input + usage.output
            if prices is not None:
                account.cost += prices.cost_of(usage.input, usage.output)
            self._is_saved = False

    def as_dict(self, since: Mapping[str, Account] | None = None) -> dict[str, Any]:
        """Return the ledger as JSON values.

        Args:
            since: A result of `copied`; only the spending after it is returned.
        """
        with self._lock:
            accounts = {
                name: account.after((since or {}).get(name, Account()))
                for name, account in self.accounts.items()
            }
            return {
                "schema_version": 1,
                "accounts": {name: asdict(each) for name, each in accounts.items()},
                "total": asdict(sum_of(accounts.values())),
                "seconds": round(self.seconds, 3),
                "budget": asdict(self.budget),
                "ended_by": list(self.ended_by),
            }

    def save(self) -> None:
        """Write the ledger to its file, atomically."""
        with self._lock:
            self._is_saved = True
            if self.path is not None:
                write_json(self.as_dict(), self.path)

    def persist(self) -> float | None:
        """Write changes to the file, so that they survive a kill of the process.

        Returns:
            Seconds after which to call it again, if the last write is too recent; else None.
        """
        due = None if self.outer is None else self.outer.persist()
        own = self._persist()
        return own if due is None else due if own is None else max(own, due)

    def _persist(self) -> float | None:
        with self._lock:
            if self._is_saved or self.path is None:
                return None
            due = self._saved + SAVE_EVERY - self.clock()
            if due > 0:
                return due
            self._is_saved, self._saved = True, self.clock()
            with atomic_file(self.path, synced=False) as file:
                file.write(indented(self.as_dict()))
            return None

    @contextlib.contextmanager
    def charging(self) -> Iterator[Ledger]:
        """Count all calls inside the block in this ledger, and save it at the end."""
        token = _ledger.set(self)
        try:
            yield self
        finally:
            _ledger.reset(token)
            self.save()

    @contextlib.contextmanager
    def _noting_end(self) -> Iterator[None]:
        """Note that the outer ledger's limit ended this session, if it did."""
        try:
            yield
        except BudgetSpentError:
            self.was_spent = True
            raise

    def _account(self, name: str) -> Account:
        return self.accounts.setdefault(name, Account())


_ledger: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


def enclosing_ledger() -> Ledger | None:
    """Return the ledger of the enclosing `Ledger.charging`; None outside of any."""
    return _ledger.get()


def current_ledger() -> Ledger:
    """Return the ledger of the enclosing `Ledger.charging`, else a new one without limits."""
    return _ledger.get() or Ledger()
