"""Batches under a budget, what is kept of it, and the order in which conversations are played."""

from __future__ import annotations

from collections import Counter

import pytest

from astra_rl.core.text import Conversation
from astra_rl.errors import BudgetSpentError
from astra_rl.runs.phases import played_order
from astra_rl.runs.spending import batches_within_budget
from astra_rl.targets.budget import Budget, Usage
from astra_rl.targets.ledger import Ledger


def play(ledger: Ledger, count: int, calls_per_item: int, *, cached: int = 0) -> tuple[int, int]:
    """Ask target and judge for each item of a batch in turn; return asked and finished items."""
    asked = finished = 0
    with ledger.charging():
        for size in batches_within_budget(count, 128):
            for call in range(calls_per_item):
                for _ in range(size):
                    if asked < cached:
                        ledger.cached("m", 1)
                    else:
                        try:
                            ledger.settle(ledger.admit("m"), Usage(10, 10))
                        except BudgetSpentError:
                            return asked, finished
                    asked += call == 0
                    finished += call == calls_per_item - 1
    return asked, finished


@pytest.mark.parametrize("budget", [Budget(max_requests=60), Budget(max_tokens=1200)])
def test_a_budget_for_thirty_of_fifty_conversations_finishes_all_but_a_few(
    budget: Budget,
) -> None:
    asked, finished = play(Ledger(budget), 50, calls_per_item=2)
    assert finished >= 29  # before, 10: the target was asked 50 times first
    assert asked - finished <= 2


def test_a_budget_that_cannot_end_the_work_changes_nothing() -> None:
    assert Ledger().affords(None)
    ledger = Ledger(Budget(max_requests=100, max_cost=1.0))
    assert ledger.affords({"max_requests": 50, "max_cost": 0.5})
    assert not ledger.affords({"max_requests": 51, "max_cost": 0.5})  # calls may be tried again
    assert not ledger.affords({"max_requests": 50})  # the cost is not known
    assert not ledger.affords(None)
    assert not Ledger(Budget(max_minutes=5)).affords({"max_requests": 1})
    with ledger.holding({"max_requests": 1}):
        assert not ledger.affords({"max_requests": 50, "max_cost": 0.5})


def test_a_budget_that_is_far_away_does_not_make_batches_small() -> None:
    with Ledger(Budget(max_requests=10**6)).charging() as ledger:
        sizes = []
        for size in batches_within_budget(300, 128):
            sizes.append(size)
            for _ in range(size):
                ledger.settle(ledger.admit("m"), Usage(1, 1))
    assert sizes == [1, 128, 128, 43]


def test_what_is_held_for_later_is_left_when_the_rest_is_spent() -> None:
    ledger = Ledger(Budget(max_requests=10))
    with ledger.charging():
        with ledger.holding({"max_requests": 4}):
            for _ in range(6):
                ledger.settle(ledger.admit("m"))
            with pytest.raises(BudgetSpentError) as ended:
                ledger.admit("m")
        assert "max_requests=10, less 4 kept for the final evaluation, is spent (6)" in str(
            ended.value
        )
        assert ended.value.sufficient_limit == 20
        for _ in range(4):
            ledger.settle(ledger.admit("m"))
        with pytest.raises(BudgetSpentError, match="max_requests=10 is spent"):
            ledger.admit("m")


def test_a_part_of_an_evaluation_is_a_random_sample_that_plays_every_prompt_first() -> None:
    prompts = [f"category {number // 10}, {number}" for number in range(50)]
    order = [str(each) for each in played_order(prompts, 100, 0)]
    assert order == played_order(prompts, 100, 0)
    assert order != played_order(prompts, 100, 1)
    assert sorted(order[:50]) == sorted(order[50:]) == sorted(prompts)
    assert len(Counter(each[:10] for each in order[:20])) == 5  # of five categories


def test_openings_with_one_visible_text_are_played_in_the_order_of_other_texts() -> None:
    texts = [f"p{number}" for number in range(9)]
    goals = [Conversation(facts={"goal": each}) for each in texts]
    order = [each for each in played_order(goals, 27, 5) if isinstance(each, Conversation)]
    assert [each.facts["goal"] for each in order] == played_order(texts, 27, 5)
