"""A ledger within another one: calls count in both, and the limits of both apply."""

from __future__ import annotations

from pathlib import Path

import pytest

from astra_rl.errors import BudgetSpentError
from astra_rl.runs.spending import spending_on
from astra_rl.targets.budget import Budget, Prices, TokenBound, Usage
from astra_rl.targets.ledger import Ledger, current_ledger

PRICES = Prices(input=1e6, output=1e6)  # one unit of cost per token


def call(times: int = 1) -> None:
    ledger = current_ledger()
    for _ in range(times):
        ledger.settle(ledger.admit("m", prices=PRICES), Usage(2, 3), PRICES)


def test_calls_count_in_the_ledger_of_the_block_and_in_that_around_it(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    with spending_on(Budget(max_requests=9), whole, uses_endpoints=True) as outer:
        call()
        with spending_on(Budget(max_requests=9), part, uses_endpoints=True) as inner:
            call(2)
            inner.failed("m")
            inner.cached("m", 4)
        call()
    assert (inner.total().requests, outer.total().requests) == (2, 4)
    assert (inner.total().cost, outer.total().cost) == (10, 20)
    assert (outer.total().failed_tries, outer.total().cached) == (1, 4)
    assert Ledger.open(whole / "ledger.json", Budget()).total() == outer.total()
    assert Ledger.open(part / "ledger.json", Budget()).total() == inner.total()


@pytest.mark.parametrize(
    "budget", [Budget(max_requests=3), Budget(max_tokens=15), Budget(max_cost=15.0)]
)
def test_the_limit_of_the_outer_ledger_ends_the_inner_block(budget: Budget) -> None:
    with spending_on(budget, None, uses_endpoints=True):
        call(2)
        with spending_on(budget, None, uses_endpoints=True) as inner:
            call()
            with pytest.raises(BudgetSpentError):
                call()
            assert inner.was_spent
            assert inner.total().requests == 1
            assert inner.calls_left() == 0
        with pytest.raises(BudgetSpentError):
            current_ledger().check()


def test_what_the_outer_ledger_cannot_pay_is_not_afforded_and_what_is_held_is_held_in_both() -> (
    None
):
    with Ledger(Budget(max_requests=10)).charging() as outer:
        call(4)
        with Ledger(Budget(max_requests=10), outer=outer).charging() as inner:
            assert inner.affords({"max_requests": 3})
            assert not inner.affords({"max_requests": 4})
            with inner.holding({"max_requests": 6}), pytest.raises(BudgetSpentError, match="kept"):
                call()
            call()


def test_a_call_in_flight_is_reserved_in_both_ledgers() -> None:
    with Ledger(Budget(max_cost=300.0)).charging() as outer:
        inner = Ledger(outer=outer)
        bound = TokenBound(0, 200)
        reserved = inner.admit("m", bound, PRICES)
        with pytest.raises(BudgetSpentError):
            outer.admit("m", bound, PRICES)
        inner.settle(reserved, Usage(1, 1), PRICES)
        outer.admit("m", bound, PRICES)
