"""When the calls of an evaluation make it no result."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from astra_rl.errors import EndpointError
from astra_rl.evaluation.records.from_graphs import SILENT
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.runs.call_notes import all_calls_failed, all_failed, check_any_known


def attempts(*errors: str) -> list[Any]:
    """Attempts with these errors; an empty one is a known outcome."""
    return [
        SimpleNamespace(outcome=Outcome.ERROR if each else Outcome.FAILURE, error=each)
        for each in errors
    ]


def test_an_evaluation_of_which_every_conversation_failed_names_the_most_frequent_reason() -> None:
    found = attempts("timeout", "refused", "refused")
    assert all_failed(found).endswith("nothing is known about the target: refused.")
    with pytest.raises(EndpointError, match=r"^model b: all 3 conversations failed"):
        check_any_known({"model a": attempts("", "refused"), "model b": found})


@pytest.mark.parametrize("errors", [(), ("",), ("", "refused")])
def test_one_known_outcome_is_enough(errors: tuple[str, ...]) -> None:
    assert all_failed(attempts(*errors)) == ""
    assert not all_calls_failed(attempts(*errors))
    check_any_known({"model": attempts(*errors)})


def test_empty_attacks_are_no_failed_calls() -> None:
    """Playing them again would not help, so a training is complete."""
    assert all_failed(attempts(SILENT, SILENT))
    assert not all_calls_failed(attempts(SILENT, SILENT))
    assert all_calls_failed(attempts(SILENT, "refused"))
