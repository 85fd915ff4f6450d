"""What was spent on calls, and what may be."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.infra.jsonio import atomic_file, indented, parse_own_json, write_json
from astra_rl.targets.budget import ASSUMED_OUTPUT, Budget, Prices, Usage, Worst

KEEP_EVERY = 0.02
"""Seconds between two writes of a ledger that is kept in a file, while calls go on."""


class Reserved(NamedTuple):
    """What is set aside for a call under way.

    Attributes:
        name: Of the endpoint.
        worst: What was said that it can take at most.
        input: Tokens that are set aside for what it reads.
        output: The same for what it writes.
        cost: What they would cost.
    """

    name: str
    worst: Worst
    input: int
    output: int
    cost: float


@dataclass
class Account:
    """What was spent on one endpoint.

    Attributes:
        requests: Sent, tries again included.
        failed_tries: Of those.
        cached: Replies that were known already and cost nothing.
        input_tokens: Read by the endpoint, as it says itself.
        output_tokens: Written by it.
        cost: By the prices that were given; of failed tries nobody knows.
        estimated_tokens: Of all tokens, those that were not counted but estimated.
    """

    requests: int = 0
    failed_tries: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    estimated_tokens: int = 0

    def after(self, earlier: Account) -> Account:
        """Return what was spent beyond an earlier state of the same account."""
        before = asdict(earlier)
        return Account(**{name: value - before[name] for name, value in asdict(self).items()})


@dataclass
class Ledger:
    """Counts what is spent and says when it is enough. It may be used from any thread.

    Before a call is sent, the most that it can take is set aside, so that calls under way do not
    lead beyond a limit of tokens or cost. Where nobody limits a reply, as much is set aside as the
    longest reply of the endpoint so far took, or `ASSUMED_OUTPUT`. A call that took more than was
    set aside for it is counted in full, and that much more is set aside for each later one.

    Attributes:
        budget: The most that may be spent.
        accounts: What was spent, by the name of the endpoint.
        earlier_seconds: Of sessions before this one.
        ended_by: What ended earlier sessions, in words.
        path: File in which it is kept; None keeps it in memory.
        spent_by: The limit for which something was not done; then nothing more is sent.
        is_closed: Whether only what is known already is answered, see `closed`.
    """

    budget: Budget = field(default_factory=Budget)
    accounts: dict[str, Account] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    ended_by: list[str] = field(default_factory=list)
    path: Path | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._started = self.clock()
        self._is_kept, self._saved = True, -math.inf
        self._reserved: list[Reserved] = []
        self._longest: dict[str, int] = {}
        self._excess: dict[str, tuple[int, int]] = {}
        self.spent_by: BudgetSpentError | None = None
        self.is_closed = False

    @classmethod
    def open(cls, path: Path, budget: Budget) -> Ledger:
        """Go on with the ledger in a file, under a budget; begin one if there is none.

        Raises:
            ConfigurationError: The file is no ledger.
        """
        ledger = cls(budget, path=path)
        if path.is_file():
            try:
                kept = parse_own_json(path.read_text(encoding="utf-8"))
                accounts = {name: _account(each) for name, each in kept["accounts"].items()}
                seconds, ended = _amount(kept["seconds"]), [str(each) for each in kept["ended_by"]]
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigurationError(
                    f"{path} is no ledger of what a run spent ({type(error).__name__}). Restore "
                    "it, or remove it to count from zero."
                ) from error
            ledger.accounts, ledger.earlier_seconds, ledger.ended_by = accounts, seconds, ended
        return ledger

    @property
    def seconds(self) -> float:
        """Of all sessions together."""
        return self.earlier_seconds + self.clock() - self._started

    def total(self) -> Account:
        """Return the sum over all endpoints."""
        with self._lock:
            return _sum(self.accounts.values())

    def copied(self) -> dict[str, Account]:
        """Return the accounts as they are now, for `as_dict`."""
        with self._lock:
            return {name: replace(account) for name, account in self.accounts.items()}

    def check(self) -> None:
        """Raise if something is spent.

        Raises:
            BudgetSpentError: Naming the limit.
        """
        with self._lock:
            if self.spent_by is None:
                limits = asdict(self.budget)
                for name, value in self._spent().items():
                    most = limits[name]
                    if most is not None and value >= most:
                        self.spent_by = BudgetSpentError(name, most, value)
                        break
            if self.spent_by is not None:
                raise self.spent_by

    def admit(
        self, name: str, worst: Worst | None = None, prices: Prices | None = None
    ) -> Reserved:
        """Count a request that is about to be sent, and set aside the most that it can take.

        What is set aside is given back by `settle`.

        Raises:
            BudgetSpentError: It may not be sent now: a limit is reached, or could be exceeded with
                what is set aside for calls under way.
        """
        with self._lock:
            self.check()
            needed = self._most_of(name, worst or Worst(), prices)
            spent, known = self._spent(), [*self._reserved, needed]
            asides = {
                "max_tokens": sum(each.input + each.output for each in known),
                "max_cost": sum(each.cost for each in known),
            }
            limits = asdict(self.budget)
            for limit, aside in asides.items():
                most = limits[limit]
                if most is not None and spent[limit] + aside > most:
                    raise BudgetSpentError(limit, most, spent[limit], aside)
            self._reserved.append(needed)
            self._account(name).requests += 1
            self._is_kept = False
            return needed

    def settle(
        self, reserved: Reserved, usage: Usage | None = None, prices: Prices | None = None
    ) -> None:
        """Give back what was set aside for a call that is over, and count what it took."""
        with self._lock:
            self._reserved.remove(reserved)
            if usage is None:
                return
            name = reserved.name
            self._longest[name] = max(self._longest.get(name, 0), usage.output)
            read, written = self._excess.get(name, (0, 0))
            told = usage.output if reserved.worst.output is None else reserved.worst.output
            self._excess[name] = (
                max(read, usage.input - reserved.worst.input),
                max(written, usage.output - told),
            )
            self.charge(name, usage, prices)

    def _most_of(self, name: str, worst: Worst, prices: Prices | None) -> Reserved:
        more_read, more_written = self._excess.get(name, (0, 0))
        read = worst.input + more_read
        if worst.output is None:
            written = self._longest.get(name) or ASSUMED_OUTPUT
        else:
            written = worst.output + more_written
        cost = 0.0 if prices is None else prices.cost_of(read, written)
        return Reserved(name, worst, read, written, cost)

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
        """Send nothing inside the block: what is not known already gets no reply."""
        self.is_closed = True
        try:
            yield
        finally:
            self.is_closed = False

    def failed(self, name: str) -> None:
        """Count a try that failed."""
        with self._lock:
            self._account(name).failed_tries += 1
            self._is_kept = False

    def cached(self, name: str, count: int) -> None:
        """Count replies that were known."""
        with self._lock:
            self._account(name).cached += count

    def charge(self, name: str, usage: Usage, prices: Prices | None) -> None:
        """Count what a reply cost."""
        with self._lock:
            account = self._account(name)
            account.input_tokens += usage.input
            account.output_tokens += usage.output
            if usage.estimated:
                account.estimated_tokens += usage.input + usage.output
            if prices is not None:
                account.cost += prices.cost_of(usage.input, usage.output)
            self._is_kept = False

    def as_dict(self, since: Mapping[str, Account] | None = None) -> dict[str, Any]:
        """Return it as JSON values.

        Args:
            since: What `copied` returned: only what was spent after that.
        """
        with self._lock:
            accounts = {
                name: account.after((since or {}).get(name, Account()))
                for name, account in self.accounts.items()
            }
            return {
                "schema_version": 1,
                "accounts": {name: asdict(each) for name, each in accounts.items()},
                "total": asdict(_sum(accounts.values())),
                "seconds": round(self.seconds, 3),
                "budget": asdict(self.budget),
                "ended_by": list(self.ended_by),
            }

    def save(self) -> None:
        """Write it to its file, atomically."""
        with self._lock:
            self._is_kept = True
            if self.path is not None:
                write_json(self.as_dict(), self.path)

    def keep(self) -> float | None:
        """Write what is new in it, so that a kill of the process forgets it no more.

        Returns:
            Seconds after which to call it again, if it was just written; None if all is kept.
        """
        with self._lock:
            if self._is_kept or self.path is None:
                return None
            due = self._saved + KEEP_EVERY - self.clock()
            if due > 0:
                return due
            self._is_kept, self._saved = True, self.clock()
            with atomic_file(self.path, synced=False) as file:
                file.write(indented(self.as_dict()))
            return None

    @contextlib.contextmanager
    def charging(self) -> Iterator[Ledger]:
        """Charge all calls inside the block to this ledger, and save it at the end."""
        token = _ledger.set(self)
        try:
            yield self
        finally:
            _ledger.reset(token)
            self.save()

    def _account(self, name: str) -> Account:
        return self.accounts.setdefault(name, Account())


def _sum(accounts: Iterable[Account]) -> Account:
    totals = Counter[str]()
    for account in accounts:
        totals.update(asdict(account))
    return Account(**totals)


def _account(kept: Mapping[str, Any]) -> Account:
    return Account(**{name: _amount(value) for name, value in kept.items()})


def _amount(value: Any) -> Any:
    """Return a number that something may have been counted to; what is none would end no budget."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no amount")
    return value


_ledger: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


def current_ledger() -> Ledger:
    """Return the ledger of the enclosing `Ledger.charging`; one without limits outside of any."""
    return _ledger.get() or Ledger()


def describe_spent(spent: Mapping[str, Any]) -> str:
    """Say in words what `Ledger.as_dict` holds; empty if nothing was called."""
    total = spent["total"]
    if not total["requests"] and not total["cached"]:
        return ""
    tokens = total["input_tokens"] + total["output_tokens"]
    parts = [f"{total['requests']} requests", f"{tokens} tokens"]
    if total["estimated_tokens"]:
        parts[-1] += f" ({total['estimated_tokens']} estimated)"
    if total["cost"]:
        parts.append(f"cost {total['cost']:.4g}")
    if total["failed_tries"]:
        parts.append(f"{total['failed_tries']} tries failed")
    if total["cached"]:
        parts.append(f"{total['cached']} replies from the cache")
    return ", ".join(parts)
