"""Spending on endpoints: an account of each, and a phrase for people."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from astra_rl.infra.ranges import Range
from astra_rl.targets.budget import TokenBound

if TYPE_CHECKING:  # `import astra_rl` does without pydantic
    from pydantic import TypeAdapter

MOST = 2**53
"""Largest amount in a ledger; floats are exact up to it."""


class _Unconverted(Range):
    """A range of numbers of JSON: text is no number, and a boolean is no count."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        return {**super().__get_pydantic_core_schema__(source, handler), "strict": True}


Whole = Annotated[int, _Unconverted(ge=0, le=MOST)]
"""A count of requests or tokens."""
Amount = Annotated[float, _Unconverted(ge=0, le=MOST)]
"""A cost, or a number of seconds."""


class Reserved(NamedTuple):
    """Reservation for a call in flight.

    Attributes:
        name: Name of the endpoint.
        token_bound: Upper bound of its tokens, as given by the caller.
        input: Reserved input tokens.
        output: Reserved output tokens.
        cost: Cost of the reserved tokens.
        outer: Reservation of the same call in the outer ledger; None without one.
    """

    name: str
    token_bound: TokenBound
    input: int
    output: int
    cost: float
    outer: Reserved | None = None


@dataclass
class Account:
    """Spending on one endpoint.

    Attributes:
        requests: Requests sent, including retries.
        failed_tries: Requests that failed.
        cached: Replies from the cache, which cost nothing.
        input_tokens: Input tokens, as reported by the endpoint.
        output_tokens: Output tokens, as reported by the endpoint.
        cost: Cost at the given prices; failed requests that reported no tokens are not included.
        estimated_tokens: Tokens, of all, that are estimated because they were not reported.
    """

    requests: Whole = 0
    failed_tries: Whole = 0
    cached: Whole = 0
    input_tokens: Whole = 0
    output_tokens: Whole = 0
    cost: Amount = 0.0
    estimated_tokens: Whole = 0

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def after(self, earlier: Account) -> Account:
        """Return the spending since an earlier state of the same account."""
        before = asdict(earlier)
        return Account(**{name: value - before[name] for name, value in asdict(self).items()})


def sum_of(accounts: Iterable[Account]) -> Account:
    """Return the spending on all accounts together."""
    totals = Counter[str]()
    for account in accounts:
        totals.update(asdict(account))
    return Account(**totals)


@dataclass(frozen=True)
class LedgerFile:
    """``ledger.json`` and ``ledger_*.json``, see `Ledger.as_dict`.

    A field that the file lacks is None, but for the total.

    Attributes:
        accounts: Spending by name of the endpoint.
        total: Their sum.
        seconds: Running time of all sessions.
        ended_by: What ended earlier sessions, in words.
    """

    accounts: dict[str, Account] | None = None
    total: Account = field(default_factory=Account)
    seconds: Amount | None = None
    ended_by: list[str] | None = None

    # Further fields are those of later versions.
    __pydantic_config__: ClassVar[Any] = {"extra": "ignore"}

    @classmethod
    def of(cls, values: Any) -> LedgerFile:
        """Read the JSON values of a file.

        Raises:
            ValueError: A value is no valid amount.
        """
        return _reader().validate_python(values)


@functools.cache
def _reader() -> TypeAdapter[LedgerFile]:
    from pydantic import TypeAdapter

    return TypeAdapter(LedgerFile)


def describe_spent(spent: Mapping[str, Any]) -> str:
    """Return `Ledger.as_dict` as a phrase; empty if there were no calls."""
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
        parts.append(f"{total['failed_tries']} failed requests")
    if total["cached"]:
        parts.append(f"{total['cached']} replies from the cache")
    return ", ".join(parts)
