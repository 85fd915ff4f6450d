"""Limits, ledgers and what a status means."""

from __future__ import annotations

import math
from email.utils import formatdate
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.targets.failures import error_of_status, retry_after
from astra_rl.targets.ledger import Budget, Ledger, Prices, Usage, describe_spent
from astra_rl.targets.limiter import AdaptiveLimit


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": formatdate(1100, usegmt=True)}, 100),
        ({"retry-after": formatdate(900, usegmt=True)}, 0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 99 Foo"}, None),
    ],
)
def test_how_long_to_wait_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=1000) == seconds


@given(st.text(max_size=40))
def test_no_header_breaks_the_reading(text: str) -> None:
    seconds = retry_after({"retry-after": text, "retry-after-ms": text})
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


@pytest.mark.parametrize(
    ("status", "retryable", "overload", "hopeless"),
    [
        (400, False, False, False),
        (401, False, False, True),
        (403, False, False, False),
        (404, False, False, True),
        (408, True, False, False),
        (429, True, True, False),
        (500, True, False, False),
        (503, True, True, False),
        (529, True, True, False),
        (599, False, False, False),
    ],
)
def test_a_status_says_what_follows(
    status: int, retryable: bool, overload: bool, hopeless: bool
) -> None:
    error = error_of_status(status, {})
    assert (error.retryable, error.overload, error.hopeless) == (retryable, overload, hopeless)


def simulate(limit: AdaptiveLimit, capacity: int, rounds: int, noise: float = 0.0) -> float:
    """Return the mean share of a capacity that is used; more at once than it has is refused."""
    random, used = Random(0), 0.0
    for _ in range(rounds):
        sent = limit.allowed
        calls = [limit.begun(number + 1) for number in range(sent)]
        for number, call in enumerate(calls):
            if number >= capacity or random.random() < noise:
                limit.overloaded(call)
            else:
                limit.succeeded(call, sent)
        used += min(sent, capacity) / capacity
    return used / rounds


@pytest.mark.parametrize("capacity", [1, 2, 5, 13, 32, 60])
def test_a_fixed_limit_of_an_endpoint_is_found_and_used(capacity: int) -> None:
    limit = AdaptiveLimit(8, 64)
    simulate(limit, capacity, 30)
    assert simulate(limit, capacity, 200) >= 0.9


def test_refusals_that_have_nothing_to_do_with_load_do_not_stop_it() -> None:
    assert simulate(AdaptiveLimit(8, 64), 32, 300, noise=0.01) >= 0.9


def test_it_follows_a_limit_that_changes() -> None:
    limit = AdaptiveLimit(8, 64)
    simulate(limit, 10, 100)
    simulate(limit, 50, 400)
    assert limit.allowed > 40
    simulate(limit, 5, 100)
    assert limit.allowed <= 6


@given(st.integers(1, 9), st.integers(1, 99), st.lists(st.booleans(), max_size=300))
def test_it_stays_between_one_and_the_most(start: int, most: int, ends: list[bool]) -> None:
    limit = AdaptiveLimit(start, most)
    for succeeded in ends:
        under_way = limit.allowed
        if succeeded:
            limit.succeeded(limit.begun(under_way), under_way)
        else:
            limit.overloaded(limit.begun(under_way))
        assert 1 <= limit.allowed <= most


def test_calls_sent_before_a_decrease_do_not_decrease_again() -> None:
    limit = AdaptiveLimit(20, 64)
    calls = [limit.begun(number + 1) for number in range(20)]
    for call in calls:
        limit.overloaded(call)
    assert limit.value == pytest.approx(18)


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        (Budget(max_requests=3), "max_requests=3"),
        (Budget(max_tokens=25), "max_tokens=25"),
        (Budget(max_cost=0.00002), "max_cost=2e-05"),
        (Budget(max_minutes=0.5), "max_minutes=0.5"),
    ],
)
def test_each_budget_ends_it(budget: Budget, spent: str) -> None:
    now = [0.0]
    ledger = Ledger(budget, clock=lambda: now[0])
    with pytest.raises(BudgetSpentError, match=spent):  # noqa: PT012
        for _ in range(10):
            ledger.admit("m")
            ledger.charge("m", Usage(7, 3), Prices(input=0.5, output=1.5))
            now[0] += 10


def test_a_ledger_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    with Ledger.open(path, Budget()).charging() as ledger:
        ledger.admit("m")
        ledger.charge("m", Usage(7, 3), Prices(output=1.0))
        ledger.failed("m")
        ledger.ended_by.append("why")
    again = Ledger.open(path, Budget(max_requests=1))
    assert again.accounts == ledger.accounts
    assert again.ended_by == ["why"]
    with pytest.raises(BudgetSpentError):
        again.check()
    text = describe_spent(again.as_dict())
    assert text == "1 requests, 10 tokens, cost 3e-06, 1 tries failed"
    assert describe_spent(Ledger().as_dict()) == ""


def kept_ledger(amount: str, seconds: str = "1") -> str:
    return (
        f'{{"accounts": {{"m": {{"requests": {amount}}}}}, "seconds": {seconds}, "ended_by": []}}'
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"accounts": 3}',
        '{"accounts": {"m": {"x": 1}}}',
        "[" * 100_000,
        kept_ledger("NaN"),
        kept_ledger("-1"),
        kept_ledger('"1"'),
        kept_ledger("true"),
        kept_ledger("1", "1e999"),
    ],
)
def test_a_damaged_ledger_is_not_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(ConfigurationError, match="is no ledger"):
        Ledger.open(tmp_path / "ledger.json", Budget())


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_cost=0"):
        Budget(max_cost=0)
