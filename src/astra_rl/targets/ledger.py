"""What was spent on calls, and what may be."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from astra_rl.core.jsonio import parse_own_json, write_json
from astra_rl.errors import BudgetSpentError, ConfigurationError

SAVE_EVERY = 1.0
"""Seconds between two writes of a ledger that is kept in a file, while calls go on."""


@dataclass(frozen=True)
class Budget:
    """The most that may be spent; None is without limit.

    Attributes:
        max_requests: Requests sent, tries again included.
        max_tokens: Tokens read and written by the endpoints.
        max_cost: In the currency of the prices.
        max_minutes: Of all sessions of the run together.
    """

    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigurationError(f"{each.name}={value}; it must be above 0.")


@dataclass(frozen=True)
class Prices:
    """What tokens cost, per million, in any one currency."""

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigurationError(f"prices.{each.name}={value}; it must be 0 or more.")


@dataclass(frozen=True)
class Usage:
    """Tokens of one call.

    Attributes:
        input: Tokens read.
        output: Tokens written.
        estimated: Whether nobody counted them: a quarter of the characters is assumed.
    """

    input: int
    output: int
    estimated: bool = False

    @classmethod
    def estimate(cls, read: int, written: int) -> Usage:
        """Estimate from characters."""
        return cls(math.ceil(read / 4), math.ceil(written / 4), estimated=True)


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


@dataclass
class Ledger:
    """Counts what is spent and says when it is enough. It may be used from any thread.

    Requests never exceed their limit. Tokens and cost are known when a reply comes, so the calls
    that are under way when a limit is reached may go beyond it.

    Attributes:
        budget: The most that may be spent.
        accounts: What was spent, by the name of the endpoint.
        earlier_seconds: Of sessions before this one.
        ended_by: What ended earlier sessions, in words.
        path: File in which it is kept; None keeps it in memory.
    """

    budget: Budget = field(default_factory=Budget)
    accounts: dict[str, Account] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    ended_by: list[str] = field(default_factory=list)
    path: Path | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._started = self._saved = self.clock()

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
            return Account(
                **{
                    each.name: sum(
                        getattr(account, each.name) for account in self.accounts.values()
                    )
                    for each in fields(Account)
                }
            )

    def check(self) -> None:
        """Raise if something is spent.

        Raises:
            BudgetSpentError: Naming the limit.
        """
        with self._lock:
            total = self.total()
            spent = {
                "max_requests": total.requests,
                "max_tokens": total.input_tokens + total.output_tokens,
                "max_cost": total.cost,
                "max_minutes": self.seconds / 60,
            }
            for name, value in spent.items():
                most = getattr(self.budget, name)
                if most is not None and value >= most:
                    raise BudgetSpentError(name, most, value)

    def admit(self, name: str) -> None:
        """Count a request that is about to be sent.

        Raises:
            BudgetSpentError: It may not be.
        """
        with self._lock:
            self.check()
            self._account(name).requests += 1

    def failed(self, name: str) -> None:
        """Count a try that failed."""
        with self._lock:
            self._account(name).failed_tries += 1
            self._save_now_and_then()

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
                cost = usage.input * prices.input + usage.output * prices.output
                account.cost += cost / 1e6
            self._save_now_and_then()

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        with self._lock:
            return {
                "schema_version": 1,
                "accounts": {name: asdict(each) for name, each in self.accounts.items()},
                "total": asdict(self.total()),
                "seconds": round(self.seconds, 3),
                "budget": asdict(self.budget),
                "ended_by": list(self.ended_by),
            }

    def save(self) -> None:
        """Write it to its file, atomically."""
        with self._lock:
            self._saved = self.clock()
            if self.path is not None:
                write_json(self.as_dict(), self.path)

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

    def _save_now_and_then(self) -> None:
        if self.path is not None and self.clock() - self._saved >= SAVE_EVERY:
            self.save()


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
