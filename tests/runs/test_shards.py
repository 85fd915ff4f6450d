"""Which conversations a shard plays, and its part of a budget."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.errors import ConfigurationError
from astra_rl.runs.shards import EVALUATED_TOGETHER, Shard
from astra_rl.targets.budget import Budget


@given(st.integers(1, 40), st.integers(1, EVALUATED_TOGETHER), st.data())
def test_shards_play_every_conversation_once_and_whole_batches(
    batches: int, last: int, data: st.DataObject
) -> None:
    planned = (batches - 1) * EVALUATED_TOGETHER + last
    count = data.draw(st.integers(1, batches))
    parts = [Shard(number, count).places(planned) for number in range(1, count + 1)]
    assert sorted(place for part in parts for place in part) == list(range(planned))
    for part in parts:
        assert part == sorted(part)
        # Cut into batches, each is one that a single process plays.
        for start in range(0, len(part), EVALUATED_TOGETHER):
            batch = part[start : start + EVALUATED_TOGETHER]
            end = min(batch[0] + EVALUATED_TOGETHER, planned)
            assert batch == list(range(batch[0], end))
            assert batch[0] % EVALUATED_TOGETHER == 0
    shares = [Shard(number, count).share(planned) for number in range(1, count + 1)]
    assert sum(shares) == 1
    budget = Budget(max_requests=10_007, max_cost=0.7, max_minutes=3.0)
    divided = [budget.part(share) for share in shares]
    assert sum(each.max_requests or 0 for each in divided) <= 10_007
    assert sum(Fraction(each.max_cost or 0) for each in divided) <= Fraction(0.7) * (1 + 2**-50)
    assert {each.max_minutes for each in divided} == {3.0}


def test_a_budget_too_small_to_divide_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_tokens=3 is too small to divide"):
        Budget(max_tokens=3).part(Fraction(1, 4))
    assert Budget().part(Fraction(1, 4)) == Budget()
