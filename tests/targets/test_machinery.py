"""Limits, ledgers and what a status means."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.errors import BudgetSpentError, ConfigurationError, StorageError
from astra_rl.targets.accounts import describe_spent
from astra_rl.targets.budget import Budget, Prices, TokenBound, Usage
from astra_rl.targets.call_errors import LONGEST_WAIT, error_of_status, retry_after
from astra_rl.targets.caller import Answer, Caller, CallSettings, Send
from astra_rl.targets.concurrency import AdaptiveLimit
from astra_rl.targets.ledger import SAVE_EVERY, Ledger


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
        ({"retry-after": "inf"}, LONGEST_WAIT),
        ({"retry-after": "9" * 5000}, LONGEST_WAIT),
        ({"retry-after-ms": "9" * 5000}, LONGEST_WAIT),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, LONGEST_WAIT),
        ({"retry-after": "-inf"}, None),
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
    ("status", "retryable", "overload", "permanent"),
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
    status: int, retryable: bool, overload: bool, permanent: bool
) -> None:
    error = error_of_status(status, {})
    assert (error.retryable, error.overload, error.permanent) == (retryable, overload, permanent)


def simulate(limit: AdaptiveLimit, capacity: int, rounds: int, noise: float = 0.0) -> float:
    """Return the mean share of a capacity that is used; more at once than it has is refused."""
    random, used = Random(0), 0.0
    for _ in range(rounds):
        sent = limit.allowed
        calls = [limit.call_started(number + 1) for number in range(sent)]
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
            limit.succeeded(limit.call_started(under_way), under_way)
        else:
            limit.overloaded(limit.call_started(under_way))
        assert 1 <= limit.allowed <= most


def test_calls_sent_before_a_decrease_do_not_decrease_again() -> None:
    limit = AdaptiveLimit(20, 64)
    calls = [limit.call_started(number + 1) for number in range(20)]
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
    assert text == "1 requests, 10 tokens, cost 3e-06, 1 failed requests"
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
    with pytest.raises(ConfigurationError, match="is not a valid ledger"):
        Ledger.open(tmp_path / "ledger.json", Budget())


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_cost=0"):
        Budget(max_cost=0)


def test_budgets_of_several_runs_make_one_that_exceeds_none() -> None:
    found = Budget.least([Budget(max_requests=5, max_cost=2.0), Budget(max_requests=7), Budget()])
    assert found == Budget(max_requests=5, max_cost=2.0)


def test_a_ledger_says_what_was_spent_since_then() -> None:
    ledger = Ledger()
    ledger.charge("a", Usage(10, 1), Prices(1.0, 0.0))
    then = ledger.copied()
    ledger.charge("a", Usage(5, 2), Prices(1.0, 0.0))
    ledger.charge("b", Usage(1, 1), None)
    found = ledger.as_dict(since=then)
    assert (found["total"]["input_tokens"], found["total"]["output_tokens"]) == (6, 3)
    assert found["accounts"]["a"]["cost"] == pytest.approx(5e-6)
    assert ledger.as_dict()["total"]["input_tokens"] == 16


def test_what_was_answered_when_a_batch_breaks_off_is_counted_and_kept() -> None:
    """All answers come at once, and the first cannot be kept: the disk is full."""

    @asynccontextmanager
    async def connected() -> AsyncIterator[Send[int, str]]:
        async def send(item: int) -> Answer[str]:
            return Answer(str(item), Usage(10, 1))

        yield send

    kept: list[int] = []

    def answered(index: int, value: str) -> None:
        if not index:
            raise StorageError("the disk is full")
        kept.append(index)

    ledger = Ledger(Budget(max_tokens=1000))
    caller = Caller("e", CallSettings(), prices=Prices(1.0, 1.0))
    with ledger.charging(), pytest.raises(StorageError):
        caller.call(
            connected, range(5), answered=answered, token_bound=lambda item: TokenBound(100, 10)
        )
    total = ledger.total()
    assert (total.requests, total.input_tokens, total.output_tokens) == (5, 50, 5)
    assert kept == [1, 2, 3, 4]
    ledger.admit("e", TokenBound(945, 0))  # nothing is set aside any more


def test_a_kill_forgets_nothing_that_was_sent(tmp_path: Path) -> None:
    """What stands in the file while a call is under way has its request, and those answered."""
    seen: list[dict[str, int]] = []
    path = tmp_path / "ledger.json"

    @asynccontextmanager
    async def connected() -> AsyncIterator[Send[int, str]]:
        async def send(item: int) -> Answer[str]:
            await asyncio.sleep(3 * SAVE_EVERY)
            seen.append(json.loads(path.read_text())["total"])
            return Answer(str(item), Usage(10, 1))

        yield send

    caller = Caller("e", CallSettings(concurrency=1, start_concurrency=1))
    with Ledger(path=path).charging():
        caller.call(connected, range(3))
    assert [each["requests"] for each in seen] == [1, 2, 3]
    assert [each["input_tokens"] for each in seen] == [0, 10, 20]
