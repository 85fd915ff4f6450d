"""The table of a league: means over seeds, with their intervals."""

from __future__ import annotations

import math

import pytest

from astra_rl.actions.league_table import COLUMNS, Cell, League, write_league
from astra_rl.evaluation.stats.rates import Rate


def test_a_method_of_several_seeds_has_intervals_and_hostile_names_are_escaped(tmp_path):
    numbers = dict.fromkeys((column.name for column in COLUMNS), math.nan)
    cells = [
        Cell("=a|b", seed, 64, 32, {**numbers, "asr": value, "effective_kinds": 2.0})
        for seed, value in enumerate([0.2, 0.4, 0.6])
    ]
    league = League(64, cells)
    asr = league.rows()["=a|b"]["asr"]
    assert asr.mean == pytest.approx(0.4)
    assert asr.interval is not None
    assert asr.interval.low < 0.4 < asr.interval.high
    write_league(league, tmp_path)
    assert "=a|b" not in (tmp_path / "league.md").read_text()
    assert "\n'=a|b,0,64,32" in (tmp_path / "league.csv").read_text().replace("\r\n", "\n")
    headings, _ = league.table()
    assert "recall of modes" not in headings  # unknown for all


def test_the_rate_on_held_out_prompts_has_the_error_of_the_prompts_that_seeds_share():
    """Twenty seeds that all succeed at the same 10 of 20 prompts differ in nothing."""
    numbers = dict.fromkeys((column.name for column in COLUMNS), math.nan)
    rate = Rate.of_prompts([(1, 1), (0, 1)] * 10, prompt_ids=range(20))
    cells = [Cell("a", seed, 64, 64, {**numbers, "asr": 0.5}, rate) for seed in range(20)]
    low, high = League(64, cells).rows()["a"]["asr"].interval
    assert low < 0.3
    assert high > 0.7
