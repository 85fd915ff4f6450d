"""Two sides compared prompt by prompt, in any order that they come in."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.comparisons import TrialTable, compare, joined, side_of
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome

OUTCOME = st.sampled_from([Outcome.SUCCESS, Outcome.FAILURE, Outcome.ERROR])
PLAYED = st.dictionaries(
    st.tuples(
        st.sampled_from(["a", "b", "Z", "\u00e9", "\U0001f600", "\uffff"]), st.integers(0, 3)
    ),
    OUTCOME,
    min_size=1,
)


def rows_of(played: dict[tuple[str, int], Outcome]) -> list[AttemptRow]:
    return [
        AttemptRow(f"{prompt} {trial}", "after", prompt, trial, "a", "t", outcome, 1)
        for (prompt, trial), outcome in played.items()
    ]


def by_prompt(rows: list[AttemptRow]) -> list[AttemptRow]:
    return sorted(rows, key=lambda row: (row.prompt_id.encode(), row.trial))  # as SQLite sorts


@given(PLAYED, PLAYED)
def test_sides_are_joined_by_prompt(
    a: dict[tuple[str, int], Outcome], b: dict[tuple[str, int], Outcome]
) -> None:
    found = list(joined(by_prompt(rows_of(a)), by_prompt(rows_of(b))))
    prompts = [{row.prompt_id for side in sides for row in side} for sides in found]
    assert all(len(each) == 1 for each in prompts)
    assert len(prompts) == len({key[0] for key in (*a, *b)})
    for at, played in enumerate((a, b)):
        rows = [row for sides in found for row in sides[at]]
        assert {(row.prompt_id, row.trial): row.outcome for row in rows} == played


@given(PLAYED, PLAYED)
def test_a_table_of_trials_compares_like_the_attempts(
    a: dict[tuple[str, int], Outcome], b: dict[tuple[str, int], Outcome]
) -> None:
    tables = []
    for played in (a, b):
        table = TrialTable()
        for prompt, rows in groupby(by_prompt(rows_of(played)), key=lambda row: row.prompt_id):
            table.add(prompt, side_of(rows))
        tables.append(table)
    try:
        expected = compare(rows_of(a), rows_of(b))
    except ConfigurationError:
        with pytest.raises(ConfigurationError, match="no prompt in common"):
            tables[0].compare(tables[1])
        return
    # Without a pair of known outcomes some numbers are NaN, which is not equal to itself.
    assert str(tables[0].compare(tables[1])) == str(expected)
