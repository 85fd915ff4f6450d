"""Spending on endpoints: an account of each, and a phrase for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from astra_rl.targets.budget import TokenBound


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

    requests: int = 0
    failed_tries: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    estimated_tokens: int = 0

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


def read_account(kept: Mapping[str, Any]) -> Account:
    """Return an account from the JSON values of its fields.

    Raises:
        TypeError: It has other fields.
        ValueError: A value is no valid amount.
    """
    return Account(**{name: read_amount(value) for name, value in kept.items()})


def read_amount(value: Any) -> Any:
    """Return a valid amount; others, such as NaN, would disable the budget.

    Raises:
        ValueError: It is no number, or not in [0, inf).
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is not a valid amount")
    return value


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
